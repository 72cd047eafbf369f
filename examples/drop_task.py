"""The smallest client: kazoo, one znode in, one znode out.

what    creates a sequential znode below tasks/, waits until its result appears, prints it
needs   a cluster, such as `zkd dev` in another terminal, and kazoo (pip install kazoo)
time    a second
run     python examples/drop_task.py [HOST:PORT [KERNEL [ARGUMENTS AS A JSON ARRAY]]]
        python examples/drop_task.py 127.0.0.1:2181 numpy.sum '[[1, 2, 3]]'
last    6
"""

from __future__ import annotations

import json
import sys
import threading

from kazoo.client import KazooClient


def main(hosts: str = "127.0.0.1:2181", kernel: str = "numpy.sum", arguments: str = "[[1, 2, 3]]") -> int:
    zookeeper = KazooClient(hosts)
    zookeeper.start(timeout=10)
    try:
        task = json.dumps({"kernel": kernel, "args": json.loads(arguments)}).encode()
        path = zookeeper.create("/zkd/tasks/drop-", task, sequence=True)
        task_id = path.rpartition("/")[2]
        ended = threading.Event()
        # The watch is set by the same question that may already answer yes: nothing falls in between.
        if not zookeeper.exists(f"/zkd/results/{task_id}", watch=lambda _: ended.set()) and not ended.wait(30):
            print(f"{task_id}: no result within 30 s; does a daemon run there?")
            return 1
        result = json.loads(zookeeper.get(f"/zkd/results/{task_id}")[0])
    finally:
        zookeeper.stop()
        zookeeper.close()
    if result["status"] != "done":
        print(f"{task_id}: {result['status']}, {result['error']['message']}")
        return 1
    print(f"{task_id}: done on {result['node']} in {result['run_s'] * 1e3:.1f} ms")
    print(json.dumps(result.get("value", result.get("ref"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
