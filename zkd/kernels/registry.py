"""The kernels of a node: which names a task may carry, and what stands behind each.

A `Registry` is a value: built-ins, numpy's pure functions under ``numpy.<name>``, the modules that an
operator named, and the entry points of installed packages, in this order. A name never changes hands:
two kernels of one name are an error that shows both. Nothing is ever imported by a name from a task.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType
from typing import Any

from zkd.errors import BadKernel, BadRecord
from zkd.kernels import numpy_functions
from zkd.kernels.binding import Plan, plan
from zkd.kernels.declaration import MARK, RESERVED, place, refuse_bad_name, refuse_what_is_no_kernel
from zkd.records import KernelSignature

BUILT_IN = ("array", "statistics", "summaries", "linalg", "descent", "probe", "prediction")
ENTRY_POINTS = "zkd.kernels"


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str
    function: Callable[..., Any]
    signature: str
    doc: str
    source: str  # where it is defined, for people
    plan: Plan


@dataclass(frozen=True, slots=True)
class LoadFault:
    """A module or entry point whose kernels are missing, and why. The others are there."""

    name: str
    error: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Kernel names and what they mean. Built by `load`, or by `of` from functions."""

    kernels: Mapping[str, Kernel]
    faults: tuple[LoadFault, ...] = ()
    has_numpy: bool = True

    def find(self, name: str) -> Kernel:
        """The kernel of this name; a `BadRecord` at ``$.kernel`` proposes similar names."""
        kernel = self.kernels.get(name)
        if kernel is not None:
            return kernel
        if self.has_numpy and name.startswith(RESERVED):
            known = numpy_functions.find(name.removeprefix(RESERVED))
            if known is not None:
                return _numpy_kernel(name, known)
        raise BadRecord("$.kernel", f"unknown kernel {name[:80]!r}{self._proposals(name)}")

    def _proposals(self, name: str) -> str:
        if name.startswith(RESERVED) and self.has_numpy:
            reason = numpy_functions.why_not(name.removeprefix(RESERVED))
            if reason:
                return f": {reason}"
        names = list(self)
        # `add` finds `numpy.add`, too: the short name is what people try first.
        near = difflib.get_close_matches(name[:80], names, n=3, cutoff=0.6)
        near += [other for other in names if other.removeprefix(RESERVED) == name and other not in near]
        return f"; did you mean {' or '.join(near)}?" if near else "; `zkd get kernels` lists them"

    def __iter__(self) -> Iterator[str]:
        yield from self.kernels
        if self.has_numpy:
            yield from (RESERVED + name for name in numpy_functions.names())


def of(functions: Iterable[Callable[..., Any]], *, has_numpy: bool = False) -> Registry:
    """A registry of these functions alone, named by their marks or their own names. Raises `BadKernel`."""
    kernels: dict[str, Kernel] = {}
    for function in functions:
        _add(kernels, describe_kernel(function))
    return Registry(MappingProxyType(kernels), has_numpy=has_numpy)


def load(modules: Sequence[str] = (), *, installed: bool = True) -> Registry:
    """The built-ins, numpy's functions, and the marked functions of these modules and of installed packages.

    What goes wrong with a module of the user's is a `LoadFault` in the registry, and costs its own kernels only.
    """
    kernels: dict[str, Kernel] = {}
    faults: list[LoadFault] = []
    for name in BUILT_IN:
        for function in marked(importlib.import_module(f"zkd.kernels.{name}")):
            _add(kernels, describe_kernel(function))
    for name in modules:
        _load_one(kernels, faults, name, partial(_of_module, name))
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name) if installed else ():
        _load_one(kernels, faults, f"entry point {point.name} ({point.value})", partial(_of_point, point), point.name)
    return Registry(MappingProxyType(kernels), tuple(faults))


def _load_one(
    kernels: dict[str, Kernel],
    faults: list[LoadFault],
    name: str,
    functions: Callable[[], list[Callable[..., Any]]],
    alias: str | None = None,
) -> None:
    try:
        found = functions()
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise anything at all
        faults.append(LoadFault(name, f"{type(error).__name__}: {error}"))
        return
    if not found:
        faults.append(LoadFault(name, "no kernels in it: mark its functions with @zkd.kernel"))
    for function in found:
        try:
            _add(kernels, describe_kernel(function, alias))
        except BadKernel as error:
            faults.append(LoadFault(name, str(error)))


def _of_module(name: str) -> list[Callable[..., Any]]:
    return marked(importlib.import_module(name))


def _of_point(point: EntryPoint) -> list[Callable[..., Any]]:
    target = point.load()
    return marked(target) if isinstance(target, ModuleType) else [target]


def marked(module: ModuleType) -> list[Callable[..., Any]]:
    """The kernels in a module's namespace, in the order of their definition, each once."""
    found: dict[int, Callable[..., Any]] = {}
    for value in vars(module).values():
        if callable(value) and not isinstance(value, type) and isinstance(vars_of(value).get(MARK), str):
            found[id(value)] = value
    return list(found.values())


def vars_of(value: object) -> Mapping[str, Any]:
    return getattr(value, "__dict__", {})


def describe_kernel(function: Callable[..., Any], alias: str | None = None) -> Kernel:
    """The kernel that this function is. Its name is its mark, else `alias`, else its own. Raises `BadKernel`."""
    refuse_what_is_no_kernel(function)
    name = str(vars_of(function).get(MARK) or alias or getattr(function, "__name__", ""))
    refuse_bad_name(name, function)
    bound = plan(function)
    return Kernel(name, function, bound.signature, inspect.getdoc(function) or "", place(function), bound)


def _add(kernels: dict[str, Kernel], kernel: Kernel) -> None:
    other = kernels.setdefault(kernel.name, kernel)
    if other.function is not kernel.function:
        raise BadKernel(f"two kernels are named {kernel.name!r}: {other.source} and {kernel.source}")


@lru_cache(maxsize=1024)
def _numpy_kernel(name: str, function: Callable[..., Any]) -> Kernel:
    plan = numpy_functions.binding(name.removeprefix(RESERVED))
    return Kernel(name, function, plan.signature, inspect.getdoc(function) or "", name, plan)


def signatures(registry: Registry) -> list[KernelSignature]:
    """What people see of these kernels, sorted by name."""
    listed = []
    for name in sorted(registry):
        kernel = registry.find(name)
        listed.append(KernelSignature(name, kernel.signature, _summary(kernel.doc), kernel.doc, kernel.source))
    return listed


def _summary(doc: str) -> str:
    """The first line of a docstring; numpy's ufuncs open with a signature, where the next paragraph counts."""
    paragraphs = doc.strip().split("\n\n")
    opening = paragraphs[0].partition("\n")[0]
    is_signature = re.match(r"\w+\(.*\)", opening) is not None
    chosen = paragraphs[1] if is_signature and len(paragraphs) > 1 else paragraphs[0]
    return " ".join(chosen.split())
