#!/bin/sh
# The tour of zkd on handwritten digits, with nothing but this repository: sh examples/run.sh [arguments of digits.py]
# As root it installs what is missing; without Java and ZooKeeper it uses the embedded server.
set -eu
cd "$(dirname "$0")/.."
. tests/setup.sh

setup_packages python3-venv
setup_packages openjdk-17-jre-headless zookeeper || say "going on with zkd's embedded ZooKeeper server"
setup_venv examples/requirements.txt

exec .venv/bin/python examples/digits.py "$@"
