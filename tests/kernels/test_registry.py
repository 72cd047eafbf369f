"""Which functions are kernels, where they come from, and what happens to modules that are none."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zkd.kernels as kernels
from zkd.errors import BadKernel, BadRecord
from zkd.kernels.declaration import kernel
from zkd.kernels.registry import ENTRY_POINTS, load, of, signatures

TOP = Path(__file__).parent.parent.parent
Modules = Callable[..., str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Write a module of this name and source to where it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text("import zkd.kernels as zkd\n" + textwrap.dedent(source))
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return name

    return write


# --- declaring ----------------------------------------------------------------------------------------


def test_a_declared_function_is_the_same_function() -> None:
    def square(x: float) -> float:
        return x * x

    assert kernel(square) is square
    assert kernel("other.name")(square) is square
    assert square(3) == 9
    assert list(of([square])) == ["other.name"]
    assert list(of([kernel()(square)])) == ["square"]


async def coroutine(x: int) -> int:
    return x


async def stream(x: int) -> Any:
    yield x


def generator(x: int) -> Any:
    yield x


class AsyncCallable:
    async def __call__(self, x: int) -> int:
        return x


class Plain:
    def __call__(self, x: int) -> int:
        return x + 1


@functools.wraps(coroutine)
def wrapper(x: int) -> Any:
    return coroutine(x)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (coroutine, "coroutine"),
        (stream, "async generator"),
        (generator, "generator"),
        (AsyncCallable(), "coroutine"),
        (functools.partial(coroutine, 1), "coroutine"),
        (wrapper, "coroutine"),
        (Plain, "class"),
        (int, "class"),
        (3, "expected a function"),
        (lambda x: x, "<lambda>.*give it one"),
        (len, "cannot be marked"),
        (Plain(), "expected a name"),
    ],
)
def test_what_gives_no_value_is_no_kernel_and_says_why(candidate: Any, says: str) -> None:
    with pytest.raises(BadKernel, match=says):
        kernel(candidate)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a.", ".a", "a..b", "é", "a/b", "x" * 200, "numpy.mine", "a\n"])
def test_a_name_that_no_task_should_carry_is_refused(name: str) -> None:
    with pytest.raises(BadKernel, match="name"):
        kernel(name)(lambda x: x)


def test_an_object_with_call_is_a_kernel_under_a_given_name() -> None:
    assert kernels.call(of([kernel("plus")(Plain())]), "plus", b"[1]") == 2


# --- loading ------------------------------------------------------------------------------------------


def test_kernels_of_named_modules_join_the_built_ins(module: Modules) -> None:
    name = module(
        "zkd_test_mine",
        """
        from zkd.kernels.array import total  # imported from elsewhere: the same kernel, no second one

        @zkd.kernel
        def cube(x: float) -> float:
            '''Its third power.'''
            return x**3

        @zkd.kernel("mine.twice")
        def twice(x: int) -> int: return 2 * x

        def unmarked(x): return x
        """,
    )
    registry = load([name], installed=False)
    assert registry.faults == ()
    assert kernels.call(registry, "cube", b"[3]") == 27
    assert kernels.call(registry, "mine.twice", b"[3]") == 6
    assert kernels.call(registry, "sum", b"[[1,2]]") == 3
    with pytest.raises(BadRecord, match="unknown kernel 'unmarked'"):
        registry.find("unmarked")
    listed = {it.name: it for it in signatures(registry)}
    assert listed["cube"].signature == "(x: float) -> float"
    assert listed["cube"].summary == "Its third power."
    assert listed["cube"].source.startswith("zkd_test_mine:cube (")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import zkd_no_such_module", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError"),
        ("@zkd.kernel\nasync def f(x): ...", "BadKernel.*coroutine"),
        ("@zkd.kernel\ndef f(x: 'Nothing'): ...", "annotations cannot be read.*Nothing"),
        ("@zkd.kernel('sum')\ndef f(x): ...", "two kernels are named 'sum': zkd.kernels.array:total .* zkd_test_bad:f"),
        ("x = 1", "no kernels in it"),
    ],
)
def test_a_bad_module_is_a_fault_and_stops_no_other(module: Modules, source: str, says: str) -> None:
    bad = module("zkd_test_bad", source)
    good = module("zkd_test_good", "@zkd.kernel\ndef fine(x): return x")
    registry = load([bad, "zkd_test_absent", good], installed=False)
    assert [fault.name for fault in registry.faults] == [bad, "zkd_test_absent"]
    assert importlib.import_module("re").search(says, registry.faults[0].error, 16)
    assert kernels.call(registry, "fine", b"[1]") == 1
    assert kernels.call(registry, "sum", b"[[1]]") == 1


def test_a_bad_kernel_costs_its_module_no_other_kernel(module: Modules) -> None:
    name = module("zkd_test_half", "@zkd.kernel('mean')\ndef f(x): ...\n@zkd.kernel\ndef other(x): return x")
    registry = load([name], installed=False)
    assert len(registry.faults) == 1
    assert kernels.call(registry, "other", b"[1]") == 1
    assert registry.find("mean").source.startswith("zkd.kernels.statistics:mean")


def test_two_functions_of_one_name_are_an_error_that_names_both() -> None:
    def first(x: int) -> int:
        return x

    def second(x: int) -> int:
        return x

    kernel("same")(first)
    kernel("same")(second)
    with pytest.raises(BadKernel, match=r"'same'.*first .*second "):
        of([first, second])
    assert len(list(of([first, first]))) == 1


def test_installed_packages_add_kernels_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zkd_test_package.py").write_text(
        "from zkd.kernels import kernel\n@kernel\ndef marked(x): return 1\ndef plain(x): return 2\n"
    )
    info = tmp_path / "zkd_test_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zkd-test-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nall = zkd_test_package\nalias = zkd_test_package:plain\n"
        "broken = zkd_test_nowhere:f\nmissing = zkd_test_package:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry = load()
    assert kernels.call(registry, "marked", b"[0]") == 1
    assert kernels.call(registry, "alias", b"[0]") == 2
    assert [fault.name for fault in registry.faults] == [
        "entry point broken (zkd_test_nowhere:f)",
        "entry point missing (zkd_test_package:nothing)",
    ]
    assert "marked" not in load(installed=False).kernels
    sys.modules.pop("zkd_test_package")


# --- finding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("summ", "did you mean sum"),
        ("numpy.summ", "did you mean numpy.sum"),
        ("softmax", "unknown kernel 'softmax'"),
        ("numpy.save", "writes files"),
        ("percentile", "did you mean numpy.percentile"),
        ("x" * 5000, "unknown kernel 'xxx"),
        ("", "unknown kernel ''"),
        ("os.system", "unknown"),
        ("zkd.kernels.registry:load", "unknown"),
        ("__import__", "unknown"),
    ],
)
def test_an_unknown_name_is_refused_and_imports_nothing(name: str, says: str) -> None:
    before = set(sys.modules)
    with pytest.raises(BadRecord, match=says) as refused:
        BUILT_IN.find(name)
    assert refused.value.where == "$.kernel"
    assert len(str(refused.value)) < 400
    assert set(sys.modules) - before <= {"difflib"}


BUILT_IN = load(installed=False)


def test_every_kernel_is_described_for_people() -> None:
    listed = signatures(BUILT_IN)
    assert [it.name for it in listed] == sorted(BUILT_IN)
    for it in listed:
        assert it.signature.startswith("("), it
        assert it.summary, it
        assert "\n" not in it.summary
        assert it.source, it
        assert BUILT_IN.find(it.name).name == it.name


def test_the_documentation_lists_every_built_in_as_it_is() -> None:
    text = (TOP / "docs" / "kernels.md").read_text().replace("\\|", "|")
    for it in signatures(BUILT_IN):
        if not it.name.startswith("numpy."):
            assert f"| `{it.name}` | `{it.signature.partition(' -> ')[0]}` | {it.summary} |" in text


def test_declaring_a_kernel_needs_no_numpy() -> None:
    code = (
        "import sys\nfrom zkd.kernels import current_task, kernel, report\n"
        "kernel('k')(lambda x: x)\nassert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOP)


def test_what_the_package_offers_is_there() -> None:
    for name in kernels.__all__:
        assert getattr(kernels, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        kernels.nothing_here  # noqa: B018
