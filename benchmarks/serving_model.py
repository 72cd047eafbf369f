"""What `benchmarks.serving` has served: the model, and servers that are what one would write for it.

python -m benchmarks.serving_model floor|ray PORT
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

WIDE = 50


def weights() -> Any:
    return np.random.default_rng(1).normal(size=WIDE + 1) / WIDE**0.5


def answered(rows: Any, w: Any) -> dict[str, Any]:
    score = rows @ w[:-1] + w[-1]
    second = 1.0 / (1.0 + np.exp(-score))
    return {"prediction": (score > 0).astype(int).tolist(), "probabilities": np.stack([1 - second, second], 1).tolist()}


def floor(port: int) -> None:
    import uvloop
    from aiohttp import web

    w = weights()

    async def predict(request: web.Request) -> web.Response:
        rows = np.array(json.loads(await request.read())["rows"])
        return web.Response(body=json.dumps(answered(rows, w)).encode(), content_type="application/json")

    app = web.Application()
    app.router.add_post("/", predict)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


def ray_serve(port: int) -> None:
    import ray
    from ray import serve

    @serve.deployment(num_replicas=1, max_ongoing_requests=1000)
    class Model:
        def __init__(self) -> None:
            self.w = weights()

        async def __call__(self, request: Any) -> Any:
            return answered(np.array((await request.json())["rows"]), self.w)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(Model.bind())
    while True:
        time.sleep(60.0)


if __name__ == "__main__":
    {"floor": floor, "ray": ray_serve}[sys.argv[1]](int(sys.argv[2]))
