"""Which version answers a request, and what is said of how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from zkd.core.registry import ModelRef, Registered
from zkd.registry import ModelVersion


class Route(NamedTuple):
    """`shadow` is a version that gets the request, too, and whose answer is compared and thrown away."""

    number: int
    version: ModelVersion
    is_canary: bool = False
    shadow: int | None = None


# Of each request when it has ended: what was asked for, which version, its kind of `NotPredicted` or "ok" or "gone",
# seconds since it came, and scores of its first rows.
Observe: TypeAlias = Callable[[ModelRef, Route, str, float, Sequence[float]], None]


def unobserved(ref: ModelRef, route: Route, kind: str, seconds: float, sample: Sequence[float]) -> None:
    """Nobody wants to know."""


class Router:
    """The version that an alias points to."""

    def route(self, model: Registered, ref: ModelRef, key: str | None) -> Route:
        """Raises `ModelNotFound`."""
        number = model.number(ref)
        return Route(number, model.versions[number])
