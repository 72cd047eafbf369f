"""Everything that is known about one task, in one place: submitters, kernels, daemons, and what was committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.chaos.txnlog import committed, data_dirs_of

LINES_MAX = 200
LINE_MAX = 400


def story_of(directory: Path, task: str) -> str:
    """All lines about a task, by its id or its key."""
    names = [task]
    lines = []
    for path in sorted(directory.glob("*.history")):
        for line in _lines_with(path, names):
            lines.append(f"{path.name}: {line}")
            names += [name for name in _names_in(line) if name not in names]
    for pattern in ("*.ledger", "d*.log"):
        for path in sorted(directory.glob(pattern)):
            lines += [f"{path.name}: {line}" for line in _lines_with(path, names)]
    tags = [f"/{name}".encode() for name in names]
    quoted = [f'"{name}"'.encode() for name in names]
    for transaction in committed(data_dirs_of(directory)):
        for op in transaction.ops:
            is_about = any(op.path.encode().endswith(tag) for tag in tags)
            if is_about or (("/assign/" in op.path) and any(name in op.data for name in quoted)):
                what = op.data[:LINE_MAX] if is_about else b"(among others)"
                lines.append(
                    f"committed: {transaction.zxid:#x} by {transaction.session:#x} at {transaction.time_ms} ms: "
                    f"{op.kind} {op.path} version {op.version} {what.decode(errors='replace')}"
                )
    return "\n".join(lines[:LINES_MAX]) or f"nothing is known of {task}"


def _lines_with(path: Path, names: list[str]) -> Iterator[str]:
    with path.open(errors="replace") as file:
        for line in file:
            if any(_has(line, name) for name in names):
                yield line.rstrip()[:LINE_MAX]


def _has(line: str, name: str) -> bool:
    """Whether the name stands there by itself, not as the beginning of another."""
    at = line.find(name)
    while at >= 0:
        after = line[at + len(name) : at + len(name) + 1]
        before = line[at - 1 : at]
        if not (after.isalnum() or before.isalnum() or before == "-"):
            return True
        at = line.find(name, at + 1)
    return False


def _names_in(line: str) -> list[str]:
    import msgspec

    record = msgspec.json.decode(line) if line.endswith("}") else {}
    return [record[name] for name in ("id", "key") if record.get(name)]
