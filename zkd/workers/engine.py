"""What a worker asks of `zkd.kernels`: load, list, run. The registry is loaded once, by the fork server.

The result of a run becomes JSON text here, or a file: written beside its final name, hashed, synced,
renamed. So a file with its final name is whole, whoever looks and whenever.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple

from zkd import arrays, kernels
from zkd.errors import NotData
from zkd.kernels import calling
from zkd.kernels.registry import ENTRY_POINTS
from zkd.records import KernelSignature
from zkd.workers import kept
from zkd.workers.call import BlobFormat, ModuleFault
from zkd.workers.frames import CallHeader

MESSAGE_CHARS_MAX: Final = 2_000

_modules: Any = sys.modules


class Written(NamedTuple):
    """A result in a file."""

    sha256: str
    size: int
    format: BlobFormat


def load(
    modules: Sequence[str], *, installed: bool, excluded: Sequence[str], importing: Callable[[str | None], None]
) -> tuple[kernels.Registry, list[ModuleFault]]:
    """All kernels there are. `importing` hears of each module just before it is imported, which may end us."""
    points = entry_points(group=ENTRY_POINTS) if installed else ()
    faults: dict[str, ModuleFault] = {}
    for module in excluded:
        _modules[module] = None  # importing it raises ImportError from now on, whoever tries
        faults[module] = ModuleFault(module, "")  # the pool knows why
    for module in dict.fromkeys((*modules, *(point.module for point in points))):
        if module in faults:
            continue
        importing(module)
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # an import runs other people's code, which may raise anything
            faults[module] = ModuleFault(module, f"{type(error).__name__}: {error}"[:MESSAGE_CHARS_MAX])
            _modules[module] = None  # do not run it again for the registry
    importing(None)
    registry = kernels.load([module for module in modules if module not in faults], installed=installed)
    known = {f"entry point {point.name} ({point.value})" for point in points if point.module in faults}
    late = [ModuleFault(it.name, it.error[:MESSAGE_CHARS_MAX]) for it in registry.faults if it.name not in known]
    return registry, [fault for fault in faults.values() if fault.message] + late


def signatures(registry: kernels.Registry, doc_chars: int) -> list[KernelSignature]:
    return [
        KernelSignature(it.name, it.signature[:doc_chars], it.summary[:doc_chars], it.doc[:doc_chars], it.source)
        for it in kernels.signatures(registry)
    ]


def reseed() -> None:
    """Give this process its own random numbers; a fork has a copy of its parent's."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


_OURS = frozenset({__file__, calling.__file__})


def is_ours(filename: str) -> bool:
    """Whether a line of a traceback is the way to the kernel, which tells its author nothing."""
    return filename in _OURS


def given(call: CallHeader) -> kernels.Given | None:
    """What the kernel gets of its part: memory maps, wherever a column is one file. Raises `DataDamaged`."""
    part = call.part
    if part is None:
        return None
    opened = [arrays.open_column(each.dtype, each.shape, each.files) for each in part.columns]
    if part.is_table:
        return kernels.Given([dict(zip([each.name for each in part.columns], opened, strict=True))], ["$.dataset"])
    return kernels.Given(opened, [f"$.columns[{number}]" for number in range(len(opened))])


def numbers(call: CallHeader) -> Callable[[], Any] | None:
    """What gives the number of each row of the part, if the call is about one."""
    files = None if call.part is None else call.part.numbers
    return None if files is None else lambda: arrays.open_column(files.dtype, files.shape, files.files)


def run(
    registry: kernels.Registry,
    call: CallHeader,
    body: bytes,
    path: Callable[[], Path],
    given: kernels.Given | None,
    made_dir: Path | None = None,
) -> bytes | Written:
    """The kernel's value as JSON text, or as the file `path()` with a suffix, if the text would be too long.

    `Rows` become a segment in `made_dir`, and the value says which.
    """
    args, kwargs = body[: call.args], body[call.args : call.args + call.kwargs]
    value: Any
    if call.items is None:
        value = calling.call(registry, call.kernel, args, kwargs, call.files, given)
    else:
        items = body[call.args + call.kwargs :]
        value = calling.call_items(registry, call.kernel, items, args, kwargs, call.files)
    if isinstance(value, kernels.Rows):
        value = kept.keep(value, numbers(call), made_dir, path().name)
    try:
        if not arrays.is_large(value, call.inline_max):
            text = arrays.to_json(value)
            if len(text) <= call.inline_max:
                return text
        return write(value, path())
    except NotData as error:
        raise NotData(error.where, f"the kernel's result cannot be sent: {error.reason}") from None


def write(value: object, path: Path) -> Written:
    half_written = path.with_suffix(".tmp")
    try:
        blob_format = arrays.write_blob(value, half_written)
        with open(half_written, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            os.fsync(file.fileno())
        half_written.rename(path.with_suffix(f".{blob_format}"))
    finally:
        half_written.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return Written(sha256, size, blob_format)
