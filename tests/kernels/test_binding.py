"""A wrong argument is refused before the kernel runs, with its place, what was expected and what came."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, Union

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkd.arrays import to_json
from zkd.errors import BadKernel, BadRecord
from zkd.kernels import calling
from zkd.kernels.binding import plan, signature_text
from zkd.kernels.registry import of


@dataclass
class Model:
    weights: npt.NDArray[np.float64]
    name: str = "m"


class Step(msgspec.Struct):
    size: Annotated[float, msgspec.Meta(gt=0)]
    kind: Literal["gd", "adam"] = "gd"


class Options(TypedDict):
    depth: int


UserId = NewType("UserId", int)
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def kernel_of(annotation: Any) -> Callable[..., Any]:
    def takes(x):  # type: ignore[no-untyped-def]
        return x

    takes.__annotations__["x"] = annotation
    return takes


def give(annotation: Any, value: Any) -> Any:
    return calling.call(of([kernel_of(annotation)]), "takes", to_json([value], exact=True))


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1.5, 1.5),
        (float, 3, 3.0),
        (float, np.float32(1.5), 1.5),
        (float, np.nan, np.nan),
        (int, 3, 3),
        (int, 3.0, 3),
        (int, np.int8(3), 3),
        (int, 10**30, 10**30),
        (bool, True, True),
        (str, "é", "é"),
        (bytes, b"a\x00", b"a\x00"),
        (bytes, "YWI=", b"ab"),
        (bytes, np.array([1, 2], np.uint8), b"\x01\x02"),
        (None, None, None),
        (complex, 2, 2 + 0j),
        (complex, 1j, 1j),
        (Any, [1, {"a": [2]}], [1, {"a": [2]}]),
        (object, [1], [1]),
        (Literal["a", 3, None], 3, 3),
        (Literal["a", 3, None], None, None),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (list[float], np.array([1.0, np.nan]), [1.0, np.nan]),
        (list[list[int]], [[1], []], [[1], []]),
        (list, [1, "a"], [1, "a"]),
        (Sequence[int], [1], [1]),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[float, ...], [1, 2], (1.0, 2.0)),
        (set[int], [1, 1], {1}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[str, Any], {"a": [1]}, {"a": [1]}),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (Optional[int], None, None),  # noqa: UP045
        (int | None, 4, 4),
        (Union[int, str], "x", "x"),  # noqa: UP007
        (int | float, 3, 3),
        (int | float, 3.5, 3.5),
        (float | list[float], [1.0], [1.0]),
        (Annotated[float, msgspec.Meta(ge=0)], 0, 0.0),
        (Annotated[int, "in metres"], 3, 3),
        (UserId, 7, 7),
        (Step, {"size": 0.5}, Step(0.5)),
        (Options, {"depth": 3}, {"depth": 3}),
        (np.float64, 1.5, np.float64(1.5)),
        (np.float32, 1, np.float32(1)),
        (np.int8, 7, np.int8(7)),
    ],
)
def test_a_fitting_value_arrives_as_its_annotation_says(annotation: Any, value: Any, expected: Any) -> None:
    got = give(annotation, value)
    assert type(got) is type(expected)
    np.testing.assert_equal(got, expected)


@pytest.mark.parametrize(
    ("annotation", "value", "dtype"),
    [
        (np.ndarray, [1, 2], np.int64),
        (np.ndarray, [[1.5], [2.5]], np.float64),
        (np.ndarray, [], np.float64),
        (np.ndarray, 3, np.int64),
        (np.ndarray, ["a", "b"], np.dtype("<U1")),
        (npt.ArrayLike, [True, False], np.bool_),
        (npt.NDArray[Any], [1], np.int64),
        (npt.NDArray[np.float64], [1, 2], np.float64),
        (npt.NDArray[np.float64], [[1, 2], [3, 4.5]], np.float64),
        (npt.NDArray[np.float64], [True], np.float64),
        (npt.NDArray[np.float64], np.array([1], np.float32), np.float64),
        (npt.NDArray[np.float64], [], np.float64),
        (npt.NDArray[np.int64], [], np.int64),
        (npt.NDArray[np.float32], [0.1], np.float32),
        (npt.NDArray[np.uint8], [0, 255], np.uint8),
        (npt.NDArray[np.int8], np.array([1, 2]), np.int8),
        (npt.NDArray[np.complex128], [1, 2.5], np.complex128),
        (npt.NDArray[np.floating[Any]], [1], np.float64),
        (npt.NDArray[np.floating[Any]], np.array([1], np.float32), np.float32),
        (npt.NDArray[np.integer[Any]], [1], np.int64),
        (npt.NDArray[np.number[Any]], [1], np.int64),
        (npt.NDArray[np.number[Any]], [1.5], np.float64),
        (npt.NDArray[np.bool_], [True], np.bool_),
        (npt.NDArray[np.str_], ["a"], np.dtype("<U1")),
        (npt.NDArray[np.datetime64], ["2024-02-29"], np.dtype("<M8[D]")),
        (Matrix, [[1, 2]], np.float64),
        (npt.NDArray[np.float64] | None, [1], np.float64),
        (npt.NDArray[np.float64] | float, [1], np.float64),
        (npt.NDArray[np.float64] | str, [1], np.float64),
    ],
)
def test_lists_become_arrays_of_the_annotated_dtype(annotation: Any, value: Any, dtype: Any) -> None:
    got = give(annotation, value)
    assert isinstance(got, np.ndarray)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.asarray(value, dtype))


def test_arrays_inside_of_containers_are_arrays() -> None:
    assert [a.dtype for a in give(list[npt.NDArray[np.float64]], [[1], [2, 3]])] == [np.float64, np.float64]
    assert give(dict[str, np.ndarray], {"a": [1]})["a"].dtype == np.int64
    pair = give(tuple[np.ndarray, int], [[1, 2], 3])
    assert pair[0].shape == (2,)
    assert pair[1] == 3
    model = give(Model, {"weights": [1, 2]})
    assert model.weights.dtype == np.float64
    models = give(list[Model], [{"weights": np.array([np.nan, 2.0]), "name": "b"}])
    assert np.isnan(models[0].weights[0])


def test_a_number_stays_a_number_where_an_array_would_do() -> None:
    assert type(give(npt.NDArray[np.float64] | float, 3.5)) is float
    assert type(give(npt.NDArray[np.float64] | int, 3)) is int


@pytest.mark.parametrize(
    ("annotation", "value", "where", "says"),
    [
        (float, "1", "$.args[0]", "expected float, got the text '1'"),
        (float, True, "$.args[0]", "expected float, got the truth value True"),
        (float, None, "$.args[0]", "expected float, got null"),
        (float, [1.0], "$.args[0]", "expected float, got the list"),
        (float, 10**400, "$.args[0]", "expected a number that a float can hold"),
        (int, 1.5, "$.args[0]", "expected int, got the number 1.5"),
        (int, True, "$.args[0]", "expected int"),
        (int, np.nan, "$.args[0]", "expected int"),
        (int, np.inf, "$.args[0]", "expected int"),
        (bool, 1, "$.args[0]", "expected bool"),
        (str, 1, "$.args[0]", "expected str"),
        (str, None, "$.args[0]", "expected str, got null"),
        (bytes, "not base64", "$.args[0]", "base64"),
        (None, 0, "$.args[0]", "expected null"),
        (Literal["a", "b"], "c", "$.args[0]", "expected 'a' or 'b', got the text 'c'"),
        (Literal[1], True, "$.args[0]", "expected 1"),
        (list[float], [1, "a"], "$.args[0][1]", "expected float, got str"),
        (list[list[int]], [[1], [2, None]], "$.args[0][1][1]", "expected int, got null"),
        (list[float], 3, "$.args[0]", "expected array, got int"),
        (tuple[int, str], [1], "$.args[0]", "length 2"),
        (dict[str, int], {"a": "b"}, "$.args[0].a", "expected int, got the text"),
        (dict[str, int], [1], "$.args[0]", "expected an object"),
        (int | None, "a", "$.args[0]", "expected int or null, got the text 'a'"),
        (int | str, [1], "$.args[0]", "expected"),
        (Annotated[float, msgspec.Meta(ge=0)], -1, "$.args[0]", ">= 0"),
        (Annotated[list[int], msgspec.Meta(max_length=1)], [1, 2], "$.args[0]", "length <= 1"),
        (Step, {"size": 0}, "$.args[0].size", "> 0"),
        (Step, {"size": 1, "kind": "x"}, "$.args[0].kind", "invalid enum value"),
        (Step, {}, "$.args[0]", "missing required field size"),
        (Model, {"weights": [1, "a"]}, "$.args[0].weights", "text"),
        (np.ndarray, "abc", "$.args[0]", "expected an array, got the text 'abc'"),
        (np.ndarray, None, "$.args[0]", "expected an array, got null"),
        (np.ndarray, {"a": 1}, "$.args[0]", "expected an array, got an object with 'a'"),
        (np.ndarray, [[1, 2], [3]], "$.args[0]", "lists of equal lengths"),
        (np.ndarray, [1, [2]], "$.args[0]", "lists of equal lengths"),
        (np.ndarray, [1, None], "$.args[0][1]", "got null"),
        (np.ndarray, [[1, 2], [3, {"a": 1}]], "$.args[0][1][1]", "got an object"),
        (np.ndarray, [1, "a"], "$.args[0][0]", "in one list"),
        (np.ndarray, [10**30], "$.args[0][0]", "numpy dtype"),
        (npt.NDArray[np.float64], ["a"], "$.args[0][0]", "expected float64, got the text 'a'"),
        (npt.NDArray[np.float64], [[1, 2], [3, "a"]], "$.args[0][1][1]", "expected float64, got the text 'a'"),
        (npt.NDArray[np.str_], ["a", 1], "$.args[0][1]", "in one list, got the number 1"),
        (npt.NDArray[np.float64], [1j], "$.args[0]", "float64"),
        (npt.NDArray[np.int64], [1.5], "$.args[0]", "expected an array of int64, got an array of float64"),
        (npt.NDArray[np.int64], [1.0], "$.args[0]", "int64"),
        (npt.NDArray[np.uint8], [256], "$.args[0]", "uint8 can hold, got the number 256"),
        (npt.NDArray[np.uint8], [-1], "$.args[0]", "uint8 can hold, got the number -1"),
        (npt.NDArray[np.float16], [1e30], "$.args[0]", "numbers that float16 can hold"),
        (npt.NDArray[np.float32], [1e300], "$.args[0]", "numbers that float32 can hold"),
        (npt.NDArray[np.bool_], [1], "$.args[0]", "bool"),
        (npt.NDArray[np.datetime64], ["yesterday-ish"], "$.args[0]", "dates"),
        (Matrix, [1, 2], "$.args[0]", "2 dimensions, got an array of int64 in shape"),
        (Matrix, 3, "$.args[0]", "2 dimensions"),
        (list[npt.NDArray[np.float64]], [[1], ["a"]], "$.args[0][1][0]", "float64"),
        (dict[str, np.ndarray], {"a": None}, "$.args[0].a", "array"),
        (tuple[np.ndarray, int], [[1]], "$.args[0]", "a list of 2"),
        (npt.NDArray[np.float64] | None, "x", "$.args[0]", "or null, got the text 'x'"),
        (np.float64, [1.0], "$.args[0]", "one float64"),
        (np.int8, 300, "$.args[0]", "int8"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(annotation: Any, value: Any, where: str, says: str) -> None:
    with pytest.raises(BadRecord) as refused:
        give(annotation, value)
    assert refused.value.where == where
    assert says in refused.value.expected, refused.value.expected


def test_what_has_no_annotation_takes_anything_and_lists_stay_lists() -> None:
    def free(x, *more, y=None, **named):  # type: ignore[no-untyped-def]
        return x, more, y, named

    got = calling.call(of([free]), "free", b'[[1],"a",[2]]', b'{"y":{"z":[3]},"w":null}')
    assert got == ([1], ("a", [2]), {"z": [3]}, {"w": None})


def sample(a: int, b: float = 2.0, /, c: str = "c", *, d: bool, e: list[int] | None = None) -> str:
    return f"{a} {b} {c} {d} {e}"


def spread(*numbers: float, **named: int) -> Any:
    return numbers, named


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "where", "says"),
    [
        (sample, [], {"d": True}, "$.args", "missing 'a'"),
        (sample, [1], {}, "$.args", "missing 'd'"),
        (sample, [], {}, "$.args", "missing 'a', 'd'; the kernel takes (a: int"),
        (sample, [1, 2, "c", 4], {"d": True}, "$.args[3]", "at most 3 positional arguments, got 4"),
        (sample, [1, 2, "c"], {"c": "x", "d": True}, "$.kwargs.c", "once"),
        (sample, [1], {"b": 3.0, "d": True}, "$.kwargs.b", "by position"),
        (sample, [1], {"d": True, "f": 1}, "$.kwargs.f", "unexpected argument; expected 'c', 'd', 'e'"),
        (sample, [1], {"d": 1}, "$.kwargs.d", "expected bool, got the number 1"),
        (sample, [1], {"d": True, "e": [1, "a"]}, "$.kwargs.e[1]", "expected int"),
        (sample, ["x"], {"d": True}, "$.args[0]", "expected int"),
        (spread, [1, "a"], {}, "$.args[1]", "expected float"),
        (spread, [1], {"x": "a"}, "$.kwargs.x", "expected int"),
    ],
)
def test_calls_that_do_not_fit_the_signature_are_refused(
    function: Any, args: Any, kwargs: Any, where: str, says: str
) -> None:
    with pytest.raises(BadRecord) as refused:
        calling.call(of([function]), function.__name__, to_json(args), to_json(kwargs))
    assert refused.value.where == where
    assert says in refused.value.expected


def test_defaults_hold_where_nothing_is_given() -> None:
    registry = of([sample, spread])
    assert calling.call(registry, "sample", b"[1]", b'{"d":true}') == "1 2.0 c True None"
    assert calling.call(registry, "sample", b'[1,3,"x"]', b'{"d":false,"e":[1]}') == "1 3.0 x False [1]"
    assert calling.call(registry, "spread", b"[1,2]", b'{"k":3}') == ((1.0, 2.0), {"k": 3})


def test_the_signature_is_shown_as_it_was_written() -> None:
    assert signature_text(sample) == (
        "(a: int, b: float = 2.0, /, c: str = 'c', *, d: bool, e: list[int] | None = None) -> str"
    )
    assert signature_text(spread) == "(*numbers: float, **named: int)"


class Sender:
    def __call__(self, x: Callable[[int], int]) -> int:
        return x(1)


def test_an_annotation_that_json_cannot_be_checked_by_is_no_kernel() -> None:
    for annotation, says in [
        (Callable[[int], int], "x"),
        (dict[int, int], "text"),
        (npt.NDArray[np.object_], "object"),
        (Sender, "Sender"),
        (list[Sender], "Sender"),
        (np.matrix, "ndarray"),
        ("Unknown", "Unknown"),
    ]:
        with pytest.raises(BadKernel, match=says):
            plan(kernel_of(annotation))


def test_decorated_and_partial_functions_keep_their_annotations() -> None:
    def base(x: int, factor: float) -> float:
        return x * factor

    @functools.wraps(base)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs)

    with pytest.raises(BadRecord, match="expected int"):
        plan(wrapped).bind(["a", 1], {})
    halved = functools.partial(base, factor=0.5)
    assert plan(halved).bind([3], {})[0] == [3]
    with pytest.raises(BadRecord, match="expected int"):
        plan(halved).bind(["a"], {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
ANNOTATIONS = [
    float, int, bool, str, bytes, complex, np.ndarray, npt.NDArray[np.float64], npt.NDArray[np.uint8], npt.ArrayLike,
    Matrix, list[float], dict[str, int], tuple[int, float], list[npt.NDArray[np.float64]], dict[str, np.ndarray],
    Model, Step, Options, npt.NDArray[np.float64] | float | None, Literal["a"], np.float32, npt.NDArray[np.datetime64],
    npt.NDArray[np.str_],
]  # fmt: skip
PLANS = [plan(kernel_of(annotation)) for annotation in ANNOTATIONS]


@given(JSON_VALUES)
@settings(deadline=None, max_examples=150)
def test_any_json_is_an_argument_or_a_bad_record(value: Any) -> None:
    for bound in PLANS:
        try:
            bound.bind([value], {})
        except BadRecord as refused:
            message = str(refused)
        else:
            continue
        assert message.startswith("$.args[0]")
        assert len(message) < 700
