"""`@zkd.kernel`: a function says that tasks may run it, and under which name.

The function itself is returned unchanged but for a mark, so it stays callable in plain Python and a
test needs no zkd. Nothing is registered here: `zkd.kernels.registry` collects the marked functions of
the modules that an operator named. Imports no numpy, since programs declare kernels, too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from zkd.errors import BadKernel

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__zkd_kernel__"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*\Z")
NAME_LENGTH_MAX = 128
NAME_RULE = "words of letters, digits, _ and -, joined by dots, at most 128 characters"
RESERVED = "numpy."  # these names mean numpy's own functions


@overload
def kernel(function: F, /) -> F: ...
@overload
def kernel(name: str | None = None, /) -> Callable[[F], F]: ...
def kernel(function_or_name: Any = None, /) -> Any:
    """Declare a function as a kernel: ``@zkd.kernel``, or ``@zkd.kernel("name")``.

    Its name is the function's own unless given. Only plain functions: raises `BadKernel` for coroutines,
    generators and classes, and for names that no task could carry.
    """
    if function_or_name is None or isinstance(function_or_name, str):
        return partial(_declare, name=function_or_name)
    return _declare(function_or_name)


def _declare(function: F, name: str | None = None) -> F:
    refuse_what_is_no_kernel(function)
    chosen = name if name is not None else getattr(function, "__name__", "")
    refuse_bad_name(chosen, function)
    try:
        setattr(function, MARK, chosen)
    except (AttributeError, TypeError):
        raise BadKernel(f"{place(function)}: cannot be marked as a kernel; wrap it in a function of your own") from None
    return function


def refuse_bad_name(name: str, function: object) -> None:
    if not NAME.match(name) or len(name) > NAME_LENGTH_MAX:
        advice = '; give it one: @zkd.kernel("name")' if name == "<lambda>" else ""
        raise BadKernel(f"{place(function)}: expected a name of {NAME_RULE}, got {name!r}{advice}")
    if name.startswith(RESERVED):
        raise BadKernel(f"{place(function)}: names that start with {RESERVED!r} mean numpy's functions, got {name!r}")


def refuse_what_is_no_kernel(function: object) -> None:
    """Raise a `BadKernel` that says why, unless a worker can call this and get a value."""
    if not callable(function):
        raise BadKernel(f"expected a function, got {function!r}")
    if isinstance(function, type):
        raise BadKernel(f"{place(function)}: a class is not a kernel; declare a function that uses it")
    reason = _never_returns_a_value(function)
    if reason:
        raise BadKernel(f"{place(function)}: {reason}")


def _never_returns_a_value(function: Callable[..., Any]) -> str | None:
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    for candidate in (inner, type(inner).__call__):
        if inspect.isasyncgenfunction(candidate):
            return "an async generator is not a kernel: its values have nowhere to go; return a list"
        if inspect.iscoroutinefunction(candidate):
            return "a coroutine is not a kernel: workers run plain functions, in processes of their own; use `def`"
        if inspect.isgeneratorfunction(candidate):
            return "a generator is not a kernel: return a list, or report(…) progress"
    return None


def place(function: object) -> str:
    """Where a function is defined, as a person would look for it: module:qualname (file:line)."""
    inner: Any = inspect.unwrap(function) if callable(function) else function
    name = f"{getattr(inner, '__module__', '?')}:{getattr(inner, '__qualname__', repr(inner))}"
    code = getattr(inner, "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
