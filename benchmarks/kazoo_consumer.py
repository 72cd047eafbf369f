"""A consumer of `benchmarks.contenders.LockingQueue`: takes, answers, consumes."""

import sys

from kazoo.client import KazooClient


def main(connect_string: str) -> None:
    client = KazooClient(connect_string)
    client.start()
    client.ensure_path("/answers")
    queue = client.LockingQueue("/queue")
    while True:
        value = queue.get()
        client.create("/answers/a-", value, sequence=True)
        queue.consume()


if __name__ == "__main__":
    main(sys.argv[1])
