"""A kernel called as a node calls it, without a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zkd.arrays import from_json, to_json
from zkd.kernels.calling import call
from zkd.kernels.registry import of


def as_task(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `client.run` gives for this kernel and these arguments, computed here and now.

    Arguments become the JSON of a task and are checked against the annotations, the value becomes JSON and is read
    again: lists for tuples, a list for a small array, the dtype form for others. Raises what a node would report:
    `BadKernel` if this is no kernel, `BadRecord` with the place for arguments that are rejected, `TypeError` for a
    value that no result can hold, and whatever the kernel raises.
    """
    registry = of([function])
    (name,) = registry
    value = call(registry, name, to_json(list(args), exact=True), to_json(kwargs, exact=True))
    return from_json(to_json(value))
