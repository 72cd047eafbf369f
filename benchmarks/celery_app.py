"""The Celery application of `benchmarks.contenders`: one task that gives back what it got."""

import os

from celery import Celery

_broker = os.environ.get("ZKD_BENCH_BROKER", "")
app = Celery("bench", broker=_broker, backend=_broker)
app.conf.update(worker_hijack_root_logger=False, task_serializer="json", result_serializer="json")


@app.task
def same(value: str) -> str:
    return value
