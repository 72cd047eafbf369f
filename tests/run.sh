#!/bin/sh
# Runs every check of zkd on a bare Debian or anywhere else: sh tests/run.sh [pytest arguments]
# Tests of nodes take turns with the two ZooKeeper servers; with --both-servers each runs on both.
# As root it installs what is missing; else it says what that is. Ends with pytest's own summary.
set -eu
cd "$(dirname "$0")/.."
. tests/setup.sh

# The tests against a real ZooKeeper are not optional: without one the run fails. Those under a real systemd
# need root, and say so where they cannot run.
setup_packages python3-venv openjdk-17-jre-headless zookeeper
if [ "$(id -u)" = 0 ]; then
    setup_packages systemd-container || true
fi
setup_venv tests/requirements.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
mkdir -p out # out/junit.xml keeps the output of what failed
# By file, since a file shares its costly parts: a server, an ensemble, a machine with systemd.
exec .venv/bin/python -m pytest -n 3 --dist loadfile --junitxml=out/junit.xml -o junit_logging=all -r fEs "$@"
