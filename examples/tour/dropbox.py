"""All that a client of zkd needs, with kazoo and the standard library: znodes of JSON go in, znodes of JSON come out.

A task is created at tasks/<id>; its result appears at results/<id>. Nothing here knows zkd, and any ZooKeeper
client in any language can do the same.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from kazoo.protocol.states import WatchedEvent

Array = np.ndarray[Any, np.dtype[Any]]
Json = dict[str, Any]

ANSWER_S = 10.0  # for one answer of ZooKeeper
LOOK_AGAIN_S = 1.0  # a watch may be lost with its session: look for what is still missing


class TaskError(Exception):
    """A task ended in another way than `done`, or not in time."""


class DropBox:
    """A kazoo client, the tasks dropped through it and the results seen so far.

    `is_stopped` tells whether Ctrl-C was pressed: kazoo has a bare `except` where it sends, which swallows a
    KeyboardInterrupt, so it is raised here again.
    """

    def __init__(self, hosts: str, root: str, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self.zk = KazooClient(hosts, timeout=10.0)
        self._hosts = hosts
        self._is_stopped = is_stopped
        self.root = root
        self.dropped: list[str] = []
        self.results: dict[str, Json] = {}
        self.lives: dict[str, int] = {}  # the creation transaction of each result, when it was first read
        self._arrived: set[str] = set()
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        # kazoo tells of each try to connect; here the outcome is enough.
        logging.getLogger("kazoo").addHandler(logging.NullHandler())
        try:
            self.zk.start(ANSWER_S)
        except KazooTimeoutError:
            raise TaskError(f"no ZooKeeper answers on {self._hosts} within {ANSWER_S:g} s") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.zk.stop()
        self.zk.close()

    def drop(self, tasks: Mapping[str, Json]) -> list[str]:
        """Create these tasks, all of them on their way before the first answer is read. Their ids."""
        # The watch goes first, in the same connection: no result can appear before it is looked for.
        if self._is_stopped():
            raise KeyboardInterrupt
        answers = []
        for task_id, task in tasks.items():
            answers.append(self._look(task_id))
            answers.append(self.zk.create_async(f"{self.root}/tasks/{task_id}", json.dumps(task).encode()))
        for answer in answers:
            answer.get(timeout=ANSWER_S)
        self.dropped += tasks
        return list(tasks)

    def wait(self, ids: Collection[str], timeout_s: float = 30.0) -> dict[str, Json]:
        """The results of these tasks, when all are there. Raises `TaskError` for one that is not `done`."""
        deadline = time.monotonic() + timeout_s
        while missing := [task_id for task_id in ids if task_id not in self._arrived]:
            if self._is_stopped():
                raise KeyboardInterrupt
            with self._news:
                is_news = self._news.wait_for(lambda: self._arrived.issuperset(ids), LOOK_AGAIN_S)
            if time.monotonic() > deadline:
                raise TaskError(f"no result within {timeout_s:g} s: {', '.join(missing[:8])}")
            if not is_news:
                for task_id in missing:
                    if self._look(task_id).get(timeout=ANSWER_S) is not None:
                        self._arrived.add(task_id)
        fresh = [task_id for task_id in ids if task_id not in self.results]
        answers = [self.zk.get_async(f"{self.root}/results/{task_id}") for task_id in fresh]
        for task_id, answer in zip(fresh, answers, strict=True):
            text, stat = answer.get(timeout=ANSWER_S)
            result = json.loads(text)
            if result["status"] != "done":
                error = result.get("error", {})
                raise TaskError(f"{task_id} {result['status']} on {result.get('node')}: {error.get('message')}")
            self.results[task_id], self.lives[task_id] = result, stat.czxid
        return {task_id: self.results[task_id] for task_id in ids}

    def run(self, tasks: Mapping[str, Json]) -> list[Json]:
        """Drop and wait; the results in the order of the tasks."""
        return list(self.wait(self.drop(tasks)).values())

    def read(self, path: str) -> Any:
        """The JSON at this path below the root."""
        return json.loads(self.zk.get(f"{self.root}/{path}")[0])

    def _look(self, task_id: str) -> Any:
        return self.zk.exists_async(f"{self.root}/results/{task_id}", watch=partial(self._saw, task_id))

    def _saw(self, task_id: str, event: WatchedEvent) -> None:
        if event.type == "CREATED":
            with self._news:
                self._arrived.add(task_id)
                self._news.notify_all()


def task(kernel: str, *args: Any, node: str | None = None, priority: int = 0, **kwargs: Any) -> Json:
    """A task as it is dropped; arrays among the arguments become JSON."""
    body: Json = {"kernel": kernel, "args": [_plain(arg) for arg in args]}
    if kwargs:
        body["kwargs"] = {name: _plain(value) for name, value in kwargs.items()}
    if node is not None:
        body["node"] = node
    if priority:
        body["priority"] = priority
    return body


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    return value


def numbers(value: Any) -> Array:
    """The array that a result has as nested lists, or as dtype, shape and base64."""
    if isinstance(value, dict):
        raw = base64.b64decode(value["data"])
        return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"])
    return np.array(value)
