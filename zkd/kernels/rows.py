"""What a kernel on a part returns to have rows kept where it ran, instead of sending them as its value.

    return Rows({"score": scores}, {"count": len(scores)})

A worker writes them as a segment on its node, and the value of the task says which: `client.predict` makes datasets of
such segments. Imports no numpy, since programs declare kernels, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns with a value for each row of the part, in its order; and what is told of them."""

    columns: Mapping[str, Any]
    value: Any = None
