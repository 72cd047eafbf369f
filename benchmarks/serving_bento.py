"""The model of `benchmarks.serving` as a service of BentoML, which imports this file."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np

from benchmarks.serving_model import answered, weights


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self.w = weights()

    @bentoml.api
    async def predict(self, rows: list[list[float]]) -> dict[str, Any]:
        return answered(np.array(rows), self.w)
