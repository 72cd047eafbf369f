#!/bin/sh
# Four tours of zkd on real data, with nothing but this repository: sh examples/run.sh [--zookeeper [HOST:PORT]] [--out DIR]
# It needs Python alone; with --zookeeper a real Apache ZooKeeper. As root it installs what is missing.
set -eu
cd "$(dirname "$0")/.."
. tests/setup.sh

setup_packages python3-venv
case " $* " in
*" --zookeeper "[!-]*) ;; # one that runs already
*" --zookeeper "*) setup_packages openjdk-17-jre-headless zookeeper ;;
esac
setup_venv examples/requirements.txt

.venv/bin/python examples/digits.py "$@"
.venv/bin/python examples/flights.py "$@"
.venv/bin/python examples/training.py "$@"
exec .venv/bin/python examples/inference.py "$@"
