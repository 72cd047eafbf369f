"""The task of the taskiq contender; its worker imports this module."""

from __future__ import annotations

import os

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

_url = os.environ["ZKD_BENCH_BROKER"]
broker = ListQueueBroker(url=_url).with_result_backend(RedisAsyncResultBackend(redis_url=_url))


@broker.task
async def same(value: str) -> str:
    return value
