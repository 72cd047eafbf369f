"""numpy's own functions as kernels, named ``numpy.<name>``: only the pure ones, found by a rule.

A public name of numpy, numpy.linalg, numpy.fft or numpy.strings is a kernel if it is a ufunc, a function
that numpy dispatches by type (both take arrays and give arrays), or listed in `OTHERS`, and not in
`REFUSED`: files, print settings, callables, changes in place, uninitialised memory, results that are no
data. A bare size (`numpy.zeros`) is allowed: the worker's memory limit is the bound, as for any kernel.
A test tries every one of them: same result twice, inputs untouched, no file opened, a result for JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from zkd.arrays import BY_NAME, parse_dtype
from zkd.errors import BadRecord
from zkd.kernels.annotations import Convert
from zkd.kernels.array_types import as_array
from zkd.kernels.binding import Param, Plan
from zkd.kernels.mismatch import Mismatch

_DISPATCHED = type(np.sum)  # numpy's class for functions with __array_function__; it has no public name
_SPACES: Mapping[str, Any] = {"": np, "linalg.": np.linalg, "fft.": np.fft, "strings.": np.strings}

# Pure functions that the rule misses, because numpy dispatches by arrays only.
_OTHERS_WHY = {
    "make arrays of plain numbers": "arange array asarray eye full identity indices ones tri zeros "
    "bartlett blackman hamming hanning kaiser diag_indices tril_indices triu_indices fft.fftfreq fft.rfftfreq",
    "look at numbers or text": "base_repr binary_repr broadcast_shapes isscalar",
    "work on arrays of text": " ".join(
        "strings." + name
        for name in "count endswith find index lstrip rfind rindex rstrip slice startswith strip".split()  # noqa: SIM905
    ),
}
OTHERS = frozenset(name for listed in _OTHERS_WHY.values() for name in listed.split())

_REFUSED_WHY = {
    "writes files": "save savez savez_compressed savetxt",
    "takes a function, which no task can carry": "apply_along_axis apply_over_axes piecewise",
    "changes its arguments in place": "copyto fill_diagonal place put put_along_axis putmask",
    "depends on print settings": "array2string array_repr array_str",
    "depends on the time zone of the node": "datetime_as_string",
    "returns memory that was never written": "empty empty_like",
    "returns a dtype, not data": "common_type min_scalar_type result_type",
    "is about dtypes, not data": "can_cast",
    "is about memory, not values": "may_share_memory shares_memory",
}
REFUSED: Mapping[str, str] = {name: why for why, listed in _REFUSED_WHY.items() for name in listed.split()}

# Parameters that would break purity, or that mean nothing to a task.
_NO_PARAMETERS = frozenset({"out", "like", "subok", "overwrite_input", "copy", "einsum_call", "device", "busdaycal"})
_NAMED_REST: Mapping[str, tuple[str, ...]] = {
    "pad": ("stat_length", "constant_values", "end_values", "reflect_type"),
    "einsum": ("dtype", "casting", "order"),
    "clip": ("dtype",),
}
_TUPLES = frozenset({"axis", "axes", "shape", "new_shape", "dims", "s", "reps", "shift", "source", "destination"})
_ARRAY_LISTS = frozenset({"arrays", "tup", "condlist", "choicelist", "choices", "keys", "multi_index", "bins"})
_DATES = frozenset({"begindates", "enddates", "dates", "holidays"})
_ENCODINGS = ("utf-8", "ascii", "latin-1", "utf-16", "utf-32")  # others would be imported by name
_ERROR_RULES = ("strict", "ignore", "replace")
_PYTHON_DTYPES: Mapping[str, str] = {"int": "int64", "float": "float64", "complex": "complex128"}


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """The names of all functions that tasks may use, sorted, without ``numpy.``."""
    found = [prefix + name for prefix, space in _SPACES.items() for name in space.__all__ if find(prefix + name)]
    return tuple(sorted(found))


def find(name: str) -> Callable[..., Any] | None:
    """The function of this name, or None if it is none that tasks may use."""
    prefix, _, last = name.rpartition(".")
    space = _SPACES.get(f"{prefix}." if prefix else "")
    if space is None or name in REFUSED or last not in space.__all__:
        return None
    function = vars(space).get(last)  # getattr would import whole packages that numpy loads on demand
    is_pure = isinstance(function, np.ufunc | _DISPATCHED) or name in OTHERS
    return function if is_pure else None


def why_not(name: str) -> str | None:
    """Why this function of numpy is no kernel, if that is worth saying."""
    reason = REFUSED.get(name)
    return None if reason is None else f"numpy.{name} {reason}"


@lru_cache(maxsize=1024)
def binding(name: str) -> Plan:
    """How JSON arguments become those of this function."""
    function = find(name)
    assert function is not None, name
    if isinstance(function, np.ufunc):
        return _ufunc(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # older versions tell no signature of functions written in C
        return _plan([], {}, frozenset(), Param("args", _value, required=True))
    positional, by_name, only = [], {}, set()
    rest = None
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = _param(parameter.name, name, required=True)
        elif parameter.kind is parameter.VAR_KEYWORD:
            by_name.update({extra: _param(extra, name, required=False) for extra in _NAMED_REST.get(name, ())})
        else:
            param = _param(parameter.name, name, required=parameter.default is parameter.empty)
            if parameter.kind is not parameter.KEYWORD_ONLY:
                positional.append(param)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                only.add(param.name)
            elif param.name not in _NO_PARAMETERS:
                by_name[param.name] = param
    return _plan(positional, by_name, only, rest)


def _plan(positional: Sequence[Param], by_name: Mapping[str, Param], only: Collection[str], rest: Param | None) -> Plan:
    text = _signature(positional, by_name, only, rest)
    return Plan(text, tuple(positional), by_name, frozenset(only), rest, None)


def _ufunc(function: np.ufunc) -> Plan:
    """Inputs by position, and the keywords that change no memory but the result's."""
    inputs = [Param(f"x{index + 1}", _value, required=True) for index in range(function.nin)]
    known = ("dtype",) if function.signature is None else ("dtype", "axis", "axes", "keepdims")
    by_name = {name: _param(name, "", required=False) for name in known}
    return _plan(inputs, by_name, {param.name for param in inputs}, None)


def _param(parameter: str, function: str, *, required: bool) -> Param:
    convert: Convert = _value
    if parameter in _NO_PARAMETERS:
        convert = partial(_nothing, parameter)
    elif parameter == "dtype":
        convert = _dtype
    elif parameter in _TUPLES:
        convert = _tuples
    elif parameter in _ARRAY_LISTS:
        convert = _blocks if function == "block" else _array_list
    elif parameter in _DATES:
        convert = _dates
    elif parameter == "range":
        convert = _pairs
    elif parameter == "encoding":
        convert = partial(_one_of, _ENCODINGS)
    elif parameter == "errors":
        convert = partial(_one_of, _ERROR_RULES)
    return Param(parameter, convert if required else partial(_optional, convert), required)


# --- values -------------------------------------------------------------------------------------------


def _optional(convert: Convert, value: Any) -> Any:
    return None if value is None else convert(value)


def _value(value: Any) -> Any:
    """Lists as arrays; what numpy would wrap in objects is refused."""
    if isinstance(value, list):
        try:
            return as_array(value, None, None)
        except Mismatch:
            if not any(isinstance(item, list | np.ndarray) for item in value):
                raise
        return _array_list(value)  # lists of several lengths, such as the edges of histogramdd
    if value is None or isinstance(value, dict):
        raise Mismatch("a number, text or list", value)
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise Mismatch("a number that a numpy dtype holds", value)
    return value


def _array_list(value: Any) -> Any:
    """A list of arrays of several shapes, as `concatenate` and `select` take it."""
    if not isinstance(value, list):
        return _value(value)
    converted = []
    for index, item in enumerate(value):
        try:
            converted.append(_value(item))
        except Mismatch as mismatch:
            raise mismatch.inside(f"[{index}]") from None
    return converted


def _blocks(value: Any) -> Any:
    """Lists stay lists, because their nesting is what `block` is about."""
    if isinstance(value, list):
        return [_blocks(item) for item in value]
    return _value(value)


def _tuples(value: Any) -> Any:
    """Shapes and axes: numpy takes several of them as a tuple only."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return _tuples(value.tolist())
    if value is None or (isinstance(value, int | np.integer) and not isinstance(value, bool)):
        return value  # null: an axis, or a place in a list of them, that is left to numpy
    raise Mismatch("whole numbers", value)


def _pairs(value: Any) -> Any:
    return tuple(_pairs(item) for item in value) if isinstance(value, list) else _value(value)


def _dates(value: Any) -> Any:
    """Dates as text, such as 2024-02-29: numpy reads a single one, but no list of them."""
    if isinstance(value, np.ndarray):
        return value
    return as_array(np.asarray(value) if isinstance(value, str) else value, np.datetime64, None)


def _dtype(value: Any) -> Any:
    if not isinstance(value, str):
        raise Mismatch('a plain dtype as text, such as "float32"', value)
    try:
        return parse_dtype(_PYTHON_DTYPES.get(value, value))
    except BadRecord:
        raise Mismatch(f"a plain dtype such as {', '.join(sorted(BY_NAME))}", value) from None


def _one_of(options: tuple[str, ...], value: Any) -> Any:
    if not (type(value) is str and value in options):
        raise Mismatch(" or ".join(options), value)
    return value


def _nothing(parameter: str, value: Any) -> Any:
    raise Mismatch(f"null: `{parameter}` is not for tasks", value)


# --- text ---------------------------------------------------------------------------------------------


def _signature(
    positional: Sequence[Param], by_name: Mapping[str, Param], only: Collection[str], rest: Param | None
) -> str:
    """The parameters that a task may give, as text."""
    words = [_word(param) for param in positional if param.name not in _NO_PARAMETERS]
    if only:
        words.insert(len(only), "/")
    if rest is not None:
        words.append(f"*{rest.name}")
    places = {param.name for param in positional}
    later = [_word(param) for name, param in by_name.items() if name not in places]
    if later and rest is None:
        words.append("*")
    return f"({', '.join(words + later)})"


def _word(param: Param) -> str:
    return param.name if param.required else f"{param.name}=…"
