"""The rooms of the house: who may import what, and what no room may contain.

Imports go down the layers, never up, and never from one task of a node to another. Read from the syntax tree,
so imports inside functions and for types alone count like all others.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
FILES = {path.relative_to(TOP).as_posix(): ast.parse(path.read_text()) for path in sorted(TOP.glob("zkd/**/*.py"))}

# What a room is: a module or a package directly below zkd. A new one has to be put somewhere here.
LAYERS = [
    # Frozen values, every znode path, bytes <-> records; what everybody may know.
    {
        "errors",
        "records",
        "manifests",
        "jobs",
        "registry",
        "configs",
        "paths",
        "codec",
        "arrays",
        "settings",
        "sources",
        "credentials",
        "log",
        "journal",
        "notify",
        "schemas",
    },
    # Decides and computes; no I/O.
    {"core", "kernels", "models", "tables"},
    # Each the only one who touches: processes, files, ZooKeeper, the network.
    {"workers", "store", "zk", "net"},
    # The transactions that change a task's outcome, shared by its holder and the leader; what all the leader's duties
    # have in common, and all pictures of the tree.
    {"endings", "leading", "picture", "children", "access"},
    # What is to be seen of a cluster, read from the tree.
    {"overview"},
    # What a holder knows and decides by itself.
    {"holder"},
    # Rounds of training: the processes that compute them, and the coordinator of a job.
    {"training"},
    # Requests for predictions: what waits, and the processes that answer.
    {"serving"},
    # One file for each long-lived task of a daemon.
    {"node"},
    # Compose what a node does with data, training jobs, and requests for predictions; its settings.
    {"keeping", "trainer", "inference", "tuning"},
    # Composes a node; what programs and people use.
    {"daemon", "service", "client", "schemas", "cli", "__init__", "__main__"},
    # For the tests of those who build on zkd.
    {"testing"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

# package -> the only ones who may import it. A file, or a directory with everything below it.
ONLY = {
    "aiozk": ["zkd/zk/"],
    "multiprocessing": ["zkd/workers/"],
    "subprocess": ["zkd/workers/", "zkd/training/", "zkd/zk/apache.py", "zkd/cli/", "zkd/testing/"],
    # The daemon lives without numpy, and is 30 MB smaller for it.
    "numpy": [
        "zkd/arrays",
        "zkd/kernels/",
        "zkd/models/",
        "zkd/tables/",
        "zkd/training/brain.py",
        "zkd/training/counter.py",
        "zkd/serving/answering.py",
        "zkd/client/jobs.py",
        "zkd/client/outcomes.py",
        "zkd/client/prediction_wire.py",
        "zkd/client/predictions.py",
        "zkd/client/uploads.py",
        "zkd/workers/engine.py",
        "zkd/workers/kept.py",
        "zkd/cli/values.py",
    ],
    "pyarrow": ["zkd/tables/arrow_files.py", "zkd/tables/arrow_csv.py"],
    "s3fs": ["zkd/net/places.py"],
    "botocore": ["zkd/net/places.py"],
    "rich": ["zkd/cli/"],
    "click": ["zkd/cli/", "zkd/__main__.py"],
}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}

# Tasks without a TaskGroup, and who owns them instead.
OWNED_OTHERWISE = {
    "zkd/zk/batch.py": "a transaction outlives the caller whose cancellation must not take others' writes with it; "
    "its outcome is handed to all of them, in bounded time",
    "zkd/client/calls.py": "an async generator may not hold a TaskGroup open across `yield`; "
    "it awaits or cancels each itself",
}


def room_of(module: str) -> str:
    """``zkd.zk.session`` -> ``zk``; ``zkd`` itself -> ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file) for file in FILES} | {"zkd"}


def imports(file: str) -> Iterator[tuple[int, str]]:
    """Each line that imports, and the full name of the module it means."""
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file}:{node.lineno}: relative import; write the full name, which can be searched for"
            )
            assert node.module is not None
            # `from zkd import codec` means the module zkd.codec, `from zkd import kernel` a name of zkd itself.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file: str) -> None:
    room = room_of(module_of(file))
    assert room in LAYER, f"{file}: the room {room} stands in no layer; give it one in LAYERS, above what it imports"
    for line, module in imports(file):
        if module.split(".")[0] != "zkd":
            continue
        other = room_of(module)
        if other == room and room != "node":
            continue
        below = LAYER.get(other, -1) < LAYER[room]
        beside = LAYER.get(other) == LAYER[room] and room != "node"  # one way only, see the next test
        itself = module == module_of(file)
        assert below or beside or itself, (
            f"{file}:{line}: {room} (layer {LAYER[room]}) imports {module} (layer {LAYER.get(other)}); "
            + (
                "tasks of a node do not know each other: let the daemon connect them"
                if room == "node"
                else "imports go down"
            )
        )


def test_rooms_beside_each_other_are_not_tied_together() -> None:
    uses: dict[str, set[str]] = {}
    for file in FILES:
        room = room_of(module_of(file))
        named = {room_of(module) for _, module in imports(file) if module.split(".")[0] == "zkd"}
        uses.setdefault(room, set()).update(
            other for other in named if other != room and LAYER.get(other) == LAYER[room]
        )

    def reached(room: str, seen: frozenset[str] = frozenset()) -> set[str]:
        return {room}.union(*(reached(other, seen | {room}) for other in uses.get(room, ()) if other not in seen))

    for room, others in uses.items():
        for other in others:
            assert room not in reached(other), f"{room} and {other} import each other: one of them knows too much"


@pytest.mark.parametrize("package", ONLY)
def test_a_dependency_has_one_importer(package: str) -> None:
    for file in FILES:
        if not file.startswith(tuple(ONLY[package])):
            for line, module in imports(file):
                assert module.split(".")[0] != package, (
                    f"{file}:{line}: imports {package}, which only {ONLY[package]} may"
                )


def test_the_embedded_server_shares_no_code_with_the_client_it_is_checked_with() -> None:
    for file in FILES:
        if file.startswith("zkd/zk/server/"):
            for line, module in imports(file):
                assert module.split(".")[0] != "aiozk", f"{file}:{line}: the embedded server imports aiozk"
                ours = module.startswith("zkd.zk") and not module.startswith("zkd.zk.server")
                assert not ours, f"{file}:{line}: the embedded server imports {module}, from the client's side"


@pytest.mark.parametrize("module", ["zkd", "zkd.daemon", "zkd.cli", "zkd.client", "zkd.workers", "zkd.__main__"])
def test_daemons_and_clients_start_without_numpy(module: str) -> None:
    program = f"import sys, {module}\nsys.exit(f'{module} imports numpy' if 'numpy' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=TOP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_unpickled_or_evaluated(file: str) -> None:
    for line, module in imports(file):
        assert module.split(".")[0] not in FORBIDDEN_IMPORTS, (
            f"{file}:{line}: imports {module}; bytes are data here, never code"
        )
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{file}:{node.lineno}: calls {node.func.id}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            is_off = isinstance(node.value, ast.Constant) and node.value.value is False
            assert is_off, f"{file}:{node.value.lineno}: allow_pickle has to be False"


def test_no_task_without_an_owner() -> None:
    loose: set[str] = set()
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = ast.unparse(node.func)
                owner, _, method = called.rpartition(".")
                is_group = owner.endswith(("group", "tasks"))
                if method == "ensure_future" or (method == "create_task" and not is_group):
                    loose.add(file)
                    assert file in OWNED_OTHERWISE, (
                        f"{file}:{node.lineno}: {called} makes a task that nobody owns; use create_task of a TaskGroup"
                    )
    assert loose == set(OWNED_OTHERWISE), "an exception in OWNED_OTHERWISE is not needed any more: take it out"


def test_everything_is_caught_in_one_place_only() -> None:
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            if caught == "BaseException":
                # Fine as a `finally` that runs on errors only: it has to pass on what it caught.
                passes_on = any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(node))
                assert passes_on or file.startswith("zkd/workers/"), (
                    f"{file}:{node.lineno}: catches everything and keeps it"
                )
            elif caught == "Exception":
                assert file.startswith(("zkd/workers/", "zkd/kernels/calling.py")), (
                    f"{file}:{node.lineno}: except Exception hides bugs; only a kernel's errors become values"
                )


def test_every_metric_is_described() -> None:
    """In zkd.net.metrics, with its type and its meaning, and from there in docs/operations.md."""
    from zkd.net.metrics import METRICS

    for file, tree in FILES.items():
        for node in ast.walk(tree):
            told = node.value.elts[0] if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) else None
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".samples") and node.args:
                told = node.args[0]
            if isinstance(told, ast.Constant) and str(told.value).startswith("zkd_"):
                assert told.value in METRICS, f"{file}:{told.lineno}: describe {told.value} in zkd/net/metrics.py"
            if isinstance(told, ast.JoinedStr) and ast.unparse(told)[2:].startswith("zkd_"):
                parts = [re.escape(each.value) if isinstance(each, ast.Constant) else r"\w+" for each in told.values]
                assert any(re.fullmatch("".join(parts), name) for name in METRICS), (
                    f"{file}:{told.lineno}: describe {ast.unparse(told)} in zkd/net/metrics.py"
                )
