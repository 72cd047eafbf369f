#!/bin/sh
# No client library at all: ZooKeeper's own command line drops a task and reads its result.
#
#   what    creates /zkd/tasks/<id> with zkCli.sh, reads /zkd/results/<id> when it is there
#   needs   a cluster, such as `zkd dev` in another terminal, and zkCli.sh (Debian: apt install zookeeper)
#   time    2 s, most of it for starting Java twice
#   run     sh examples/zkcli.sh [HOST:PORT [ROOT]]
#   last    the result as JSON, with "status":"done" and "value":6.0
set -eu

hosts=${1:-127.0.0.1:2181}
root=${2:-/zkd}
id=hello-$$
for zkcli in "${ZOOKEEPER_HOME:-}/bin/zkCli.sh" /usr/share/zookeeper/bin/zkCli.sh zkCli.sh; do
    command -v "$zkcli" >/dev/null && break
done

"$zkcli" -server "$hosts" create "$root/tasks/$id" '{"kernel":"sum","args":[[1.5,2,2.5]]}' >/dev/null 2>&1
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if result=$("$zkcli" -server "$hosts" get "$root/results/$id" 2>/dev/null | grep '"status"'); then
        echo "$result"
        exit 0
    fi
done
echo "no result at $root/results/$id: does a daemon run there?" >&2
exit 1
