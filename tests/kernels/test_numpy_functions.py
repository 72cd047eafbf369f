"""Every function of numpy that tasks may name keeps the promise of the rule that let it in."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zkd.arrays import from_json, to_json
from zkd.errors import BadRecord, NotData
from zkd.kernels import calling, numpy_functions
from zkd.kernels.registry import of

PINNED = Path(__file__).with_name("numpy_functions.txt")
REGISTRY = of([], has_numpy=True)

NUMBERS = [0.5, 0.25, 0.75, 1.0]
MATRIX = [[2.0, 0.5], [0.5, 1.0]]
WORDS = ["abc", "b a", "12"]
CUBE = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 9.0]]]

# Arguments that fit most functions; each function must take at least one of these lines.
SAMPLES: list[list[Any]] = [
    [NUMBERS],
    [MATRIX],
    [NUMBERS, NUMBERS],
    [MATRIX, MATRIX],
    [[3, 1, 2], [1, 2, 3]],
    [[True, False]],
    [[True, False], [False, True]],
    [CUBE],
    [3],
    [3, 2],
    [3.0, 4],
    [[2, 2]],
    [[2, 2], 1.5],
    [NUMBERS, 2],
    [MATRIX, 2],
    [CUBE, 2],
    [MATRIX, 0, 1],
    [NUMBERS, 0, 9.0],
    [NUMBERS, [2, 2]],
    [NUMBERS, [2, 4]],
    [NUMBERS, NUMBERS, NUMBERS],
    [NUMBERS, NUMBERS, 1],
    [[0.0, 1.0, 2.0], [1.0, 3.0, 5.0], 1],
    [0.5, [0.0, 1.0], [5.0, 7.0]],
    [[MATRIX, MATRIX]],
    [[NUMBERS, [1.0]]],
    [[0, 1], [[1, 2], [3, 4]]],
    [[[True, False]], [[1, 2]]],
    [[True, False], [1, 2]],
    [[1, 2], [0, 1], 0],
    [[[0, 1], [1, 0]], [2, 2]],
    [1, [2, 2]],
    ["ij,jk->ik", MATRIX, MATRIX],
    [NUMBERS, "float32"],
    [NUMBERS, 50],
    [NUMBERS, 0.5],
    [[2, 3], [1, 3]],
    [[2, 1], [3, 1]],
    [np.array([3, 7], np.uint8)],
    [np.array(["2020-01-01", "2021-06-01"], "M8[D]")],
    [["2020-01-06"], ["2020-02-03"]],
    [["2020-01-06"], [2]],
    [["2020-01-06"]],
    [np.eye(4).reshape(2, 2, 2, 2)],
    [np.eye(4).reshape(2, 2, 2, 2), MATRIX],
    [WORDS],
    [WORDS, "a"],
    [WORDS, "b", "c"],
    [WORDS, 9],
    [["%d", "%x"], [10, 11]],
    [["abc", "cab"], "a"],
    [WORDS, "\x00" * 256],
    [WORDS, {"a": "b"}],
    [np.array([b"abc", b"d"])],
    [np.array([b"abc", b"d"]), bytes(range(256))],
    [np.array([1 + 2j, 3 - 1j])],
    [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]],
    [CUBE, 1],
    [NUMBERS, -1],
]


def bound(name: str, sample: list[Any]) -> tuple[Any, list[Any]]:
    kernel = REGISTRY.find(f"numpy.{name}")
    return kernel.function, kernel.plan.bind(from_json(to_json(sample, exact=True)), {})[0]


def fingerprint(args: list[Any]) -> bytes:
    return to_json([arg.str if isinstance(arg, np.dtype) else arg for arg in args])


@pytest.mark.parametrize("name", numpy_functions.names())
def test_a_function_that_tasks_may_name_is_pure(name: str) -> None:
    tried = 0
    for sample in SAMPLES:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                function, args = bound(name, sample)
                value = function(*args)
            except (BadRecord, TypeError, ValueError, IndexError, AttributeError, ArithmeticError):
                continue  # these arguments are not for this function
            with no_files(name):
                text = to_json(value)
                from_json(text)
                before = fingerprint(args)
                again = to_json(function(*args))
        assert fingerprint(args) == before, "it changed its arguments"
        assert again == text, "it gave another result the second time"
        tried += 1
    assert tried, f"no line of SAMPLES fits numpy.{name}: add one"


_watched: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched and (event in {"open", "exec", "compile", "socket.connect", "subprocess.Popen"}):
        raise AssertionError(f"numpy.{_watched[-1]} did {event} {args[:1]}")


sys.addaudithook(_audit)


@contextmanager
def no_files(name: str) -> Iterator[None]:
    _watched.append(name)
    try:
        yield
    finally:
        _watched.pop()


def test_the_names_are_those_that_were_reviewed() -> None:
    """After an upgrade of numpy, look at what is new, then write the names into the file."""
    pinned = set(PINNED.read_text().split())
    now = set(numpy_functions.names())
    assert now == pinned, (
        f"numpy {np.__version__} changes what tasks may call: {sorted(now - pinned)} are new, {sorted(pinned - now)} "
        f"are gone. Check that the new ones are pure, then: python -c 'from zkd.kernels import numpy_functions as n; "
        f'print("\\n".join(n.names()))\' > {PINNED.name}'
    )


def test_what_is_refused_exists_and_says_why() -> None:
    for name in numpy_functions.REFUSED:
        assert hasattr(np, name)
        assert name not in numpy_functions.names()
        with pytest.raises(BadRecord, match=numpy_functions.REFUSED[name]):
            REGISTRY.find(f"numpy.{name}")


def test_no_parameter_takes_a_function_a_file_or_memory_to_write_to() -> None:
    dangerous = {"func", "func1d", "funclist", "function", "file", "fname", "out", "like", "dst", "overwrite_input"}
    for name in numpy_functions.names():
        plan = numpy_functions.binding(name)
        assert not dangerous & set(plan.by_name), name
        for param in plan.positional:
            if param.name in dangerous:
                assert param.convert is not None
                assert param.convert(None) is None
                with pytest.raises(Exception, match="null"):
                    param.convert([1.0])


NO_KERNELS = """
load save fromfile memmap random.rand random.seed lib.npyio.load vectorize frompyfunc seterr set_printoptions test f2py
ctypeslib.load_library os sys __class__ core linalg.linalg linalg.LinAlgError linalg._umath_linalg ndarray dtype nditer
empty add.reduce sum.__call__ linalg fft strings char.add fft. linalg.svd.x Sum matrix bmat info .
"""


@pytest.mark.parametrize("name", [*NO_KERNELS.split(), "", "sum ", "sum\n", " sum"])
def test_other_names_of_numpy_are_unknown(name: str) -> None:
    with pytest.raises(BadRecord) as refused:
        REGISTRY.find(f"numpy.{name}")
    assert refused.value.where == "$.kernel"


def run(name: str, args: Any, kwargs: Any = None) -> Any:
    return from_json(to_json(calling.call(REGISTRY, f"numpy.{name}", to_json(args), to_json(kwargs or {}))))


def test_results_are_numpys_own() -> None:
    a = np.random.default_rng(7).normal(size=(4, 3))
    for got, expected in zip(run("linalg.svd", [a]), np.linalg.svd(a), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(run("fft.fft", [a[0].tolist()]), np.fft.fft(a[0]))
    assert run("percentile", [[1, 2, 3, 4], [25, 50]]) == [1.75, 2.5]
    assert run("percentile", [[1, 2, 3, 4], 50], {"method": "lower"}) == 2
    assert run("unique", [[3, 1, 3]], {"return_counts": True}) == [[1, 3], [1, 2]]
    assert run("histogram", [[1, 2, 1]], {"bins": [0, 1, 2, 3]}) == [[0, 2, 1], [0, 1, 2, 3]]
    assert run("histogram", [[1, 2, 1]], {"bins": 2, "range": [0, 4]}) == [[2, 1], [0.0, 2.0, 4.0]]
    assert run("sum", [[[1, 2], [3, 4]]], {"axis": [0, 1]}) == 10
    assert run("sum", [[[1, 2], [3, 4]], 0]) == [4, 6]
    assert run("concatenate", [[[1], [2, 3]]]) == [1, 2, 3]
    assert run("pad", [[1, 2], 1], {"constant_values": 9}) == [9, 1, 2, 9]
    assert run("einsum", ["ij,j->i", [[1, 2], [3, 4]], [1, 1]]) == [3, 7]
    assert run("reshape", [[1, 2, 3, 4], [2, 2]]) == [[1, 2], [3, 4]]
    assert run("transpose", [[[1, 2]]], {"axes": [1, 0]}) == [[1], [2]]
    assert run("block", [[[[[1]], [[2]]], [[[3]], [[4]]]]]) == [[[[1]], [[2]]], [[[3]], [[4]]]]
    assert run("strings.upper", [["ab", "é"]]) == ["AB", "É"]
    assert run("isnan", [[np.nan, 1.0]]) == [True, False]
    assert run("sort", [np.array([3.0, np.nan, 1.0])])[:2].tolist() == [1.0, 3.0]
    assert run("meshgrid", [[1, 2], [3]]) == [[[1, 2]], [[3, 3]]]
    assert run("linalg.norm", [MATRIX], {"ord": "fro", "axis": [0, 1]}) == pytest.approx(np.linalg.norm(MATRIX))
    assert run("histogramdd", [[[0.0, 0.0], [1.0, 1.0]]], {"bins": [[0, 1, 2], [0, 2]]})[0] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "where", "says"),
    [
        ("sum", [[1]], {"dtype": "object"}, "$.kwargs.dtype", "plain dtype"),
        ("sum", [[1], None, "O"], {}, "$.args[2]", "plain dtype"),
        ("sum", [[1]], {"dtype": "i4,(2,3)f8"}, "$.kwargs.dtype", "plain dtype"),
        ("sum", [[1]], {"dtype": ["a", "O"]}, "$.kwargs.dtype", "plain dtype"),
        ("sum", [[1]], {"out": [0]}, "$.kwargs.out", "unexpected"),
        ("sum", [[1], None, None, [0]], {}, "$.args[3]", "null"),
        ("sum", [[1, None]], {}, "$.args[0][1]", "null"),
        ("sum", [[1, "a"]], {}, "$.args[0][0]", "in one list"),
        ("sum", [{"a": 1}], {}, "$.args[0]", "object"),
        ("sum", [], {}, "$.args", "missing 'a'"),
        ("sum", [None], {}, "$.args[0]", "null"),
        ("atleast_1d", [1, None], {}, "$.args[1]", "null"),
        ("add", [1, None], {}, "$.args[1]", "null"),
        ("strings.encode", [["a"], [0.0]], {}, "$.args[1]", "utf-8"),
        ("sum", [10**30], {}, "$.args[0]", "holds"),
        ("sum", [[10**30]], {}, "$.args[0][0]", "holds"),
        ("add", [1, 2], {"where": [True]}, "$.kwargs.where", "unexpected"),
        ("add", [1, 2, 3], {}, "$.args[2]", "at most 2"),
        ("add", [1], {}, "$.args", "missing 'x2'"),
        ("clip", [[1], 0, 1], {"out": [0]}, "$.kwargs.out", "unexpected"),
        ("einsum", ["i->", [1]], {"out": [0]}, "$.kwargs.out", "unexpected"),
        ("median", [[1]], {"overwrite_input": True}, "$.kwargs.overwrite_input", "unexpected"),
        ("zeros", [[2]], {"like": [1]}, "$.kwargs.like", "unexpected"),
        ("strings.encode", [["a"]], {"encoding": "antigravity"}, "$.kwargs.encoding", "utf-8"),
        ("strings.encode", [["a"], "this"], {}, "$.args[1]", "utf-8"),
        ("reshape", [[1], ["2"]], {}, "$.args[1]", "whole numbers"),
    ],
)
def test_arguments_that_numpy_would_take_amiss_are_refused(
    name: str, args: Any, kwargs: Any, where: str, says: str
) -> None:
    with pytest.raises(BadRecord, match=says) as refused:
        calling.call(REGISTRY, f"numpy.{name}", to_json(args), to_json(kwargs))
    assert refused.value.where == where


def test_every_signature_is_known_without_guessing() -> None:
    """Keywords are checked by signature; a function without one would let any keyword through to numpy."""
    for name in numpy_functions.names():
        function = numpy_functions.find(name)
        assert function is not None
        if not isinstance(function, np.ufunc):
            inspect.signature(function)


def test_a_result_of_objects_is_refused_where_it_arises() -> None:
    with pytest.raises(NotData):
        to_json(np.array([None]))
