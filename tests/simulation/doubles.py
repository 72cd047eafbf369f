"""What stands in for the outside of a process: clocks, chance, the disk, the log.

The product asks modules (`time`, `random`, `os`, `secrets`) for what differs from run to run. While a world
exists, the product's modules see stand-ins under these names, which ask the world instead; nothing in the
product knows. What a machine keeps over a crash is its `Disk`.
"""

from __future__ import annotations

import os
import platform
import random
import secrets
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import zkd.daemon
import zkd.log
from tests.simulation.workers import Pool
from zkd.core.placement import place
from zkd.node.view import View
from zkd.paths import Paths
from zkd.zk import Session

if TYPE_CHECKING:
    from tests.simulation.loop import Machine
    from tests.simulation.world import World

EPOCH_S = 1_800_000_000.0  # the wall clock at the beginning of every world
world: World | None = None  # the one that runs now


def the_world() -> World:
    assert world is not None
    return world


def here() -> Machine:
    """The machine whose turn it is."""
    machine = the_world().loop.machine
    assert machine is not None
    return machine


# --- Modules ------------------------------------------------------------------------------------------------


class _Time:
    """`time`, by the world's clock: wall clocks of machines differ, a suspended one stands still."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return the_world().loop.time()

    perf_counter = monotonic

    def clock_gettime(self, clock: int) -> float:
        return world.loop.now  # type: ignore[union-attr]  # CLOCK_BOOTTIME goes on while a machine is suspended

    def time(self) -> float:
        loop = the_world().loop
        return EPOCH_S + loop.now + (loop.machine.wall_offset_s if loop.machine else 0.0)


class _Random:
    """`random`, from the machine's own stream."""

    def __getattr__(self, name: str) -> Any:
        return getattr(here().rng, name)

    def Random(self, seed: object = None) -> random.Random:  # noqa: N802 - the class's name
        return random.Random(here().rng.getrandbits(64))


class _Os:
    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def urandom(self, size: int) -> bytes:
        return here().rng.randbytes(size)

    def getpid(self) -> int:
        return 4711

    def getloadavg(self) -> tuple[float, float, float]:
        return (0.5, 0.5, 0.5)


class _Secrets:
    def __getattr__(self, name: str) -> Any:
        return getattr(secrets, name)

    def token_hex(self, size: int = 32) -> str:
        return here().rng.randbytes(size).hex()


class _Platform:
    def node(self) -> str:
        return here().name


class _Datetime:
    def __getattr__(self, name: str) -> Any:
        return getattr(datetime, name)

    def now(self, zone: object = None) -> datetime:
        return datetime.fromtimestamp(EPOCH_S + the_world().loop.now, UTC)


_MODULES: dict[int, Any] = {
    id(time): _Time(),
    id(random): _Random(),
    id(os): _Os(),
    id(secrets): _Secrets(),
    id(platform): _Platform(),
    id(datetime): _Datetime(),
}


# --- A machine's own things -----------------------------------------------------------------------------------


class Disk:
    """What outlives a crash of its machine."""

    def __init__(self) -> None:
        self.session: tuple[str, int, bytes] | None = None
        self.config: bytes | None = None


class ConfigFile:
    """`zkd.store.ConfigFile`, on the machine's `Disk`."""

    def __init__(self, data_dir: Path) -> None:
        self._disk = the_world().disks[data_dir.name]

    def read(self) -> bytes | None:
        return self._disk.config

    def write(self, text: bytes) -> None:
        self._disk.config = text


class Home:
    """`zkd.store.Home`, on the machine's `Disk`."""

    def __init__(self, path: Path) -> None:
        self._disk = the_world().disks[path.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def remember_session(self, cluster: str, session_id: int, password: bytes) -> None:
        self._disk.session = (cluster, session_id, password)

    def former_session(self, cluster: str) -> tuple[int, bytes] | None:
        return self._disk.session[1:] if self._disk.session else None

    def forget_session(self) -> None:
        self._disk.session = None


class BlobStore:
    """`zkd.store.BlobStore` without files: results here are small."""

    def __init__(self, data_dir: Path) -> None:
        self.results = self.cache = data_dir

    def find(self, sha256: str) -> None:
        return None

    def task_ids(self) -> dict[str, list[Path]]:
        return {}


class Segments:
    """`zkd.store.SegmentStore`, its cache and models without files: nobody keeps data here."""

    def __init__(self, data_dir: Path, **_: Any) -> None:
        self.made = data_dir

    def clear_arrivals(self) -> None:
        return

    def has(self, segment_id: str) -> bool:
        return False

    def ids(self) -> frozenset[str]:
        return frozenset()


class Keeping:
    """`zkd.keeping.Keeping` of a node that keeps none: it sees what datasets there are, by the product's own view."""

    def __init__(self, session: Session, paths: Paths, *_: Any) -> None:
        self.view = View(session, paths, place, Log())
        self.registry = self.model_keeper = None  # for those who serve models, and nobody does

    async def run(self) -> None:
        await self.view.run()

    def samples(self) -> Iterator[Any]:
        yield from ()


class Serving:
    """`zkd.inference.Inference` of a node that nobody asks for predictions."""

    def __init__(self, *_: Any) -> None:
        return

    async def run(self) -> None:
        return

    async def drain(self, grace_s: float) -> None:
        return

    def samples(self) -> Iterator[Any]:
        yield from ()


class Log:
    """A logger whose lines go into the world's story."""

    def __init__(self, **bound: Any) -> None:
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        return Log(**self._bound, **more)

    def debug(self, event: str, **fields: Any) -> None:
        the_world().logged(0, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        the_world().logged(1, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        the_world().logged(2, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        the_world().logged(3, event, fields)


class Daemon(zkd.daemon.Daemon):
    """The daemon as it is, but for its HTTP server: there is no network of that kind here."""

    async def _start_http(self) -> None:
        self._address = self._data_tls = None


_NAMED: list[tuple[types.ModuleType, str, Any]] = [
    (zkd.daemon, "Pool", Pool),
    (zkd.daemon, "Home", Home),
    (zkd.daemon, "ConfigFile", ConfigFile),
    (zkd.daemon, "BlobStore", BlobStore),
    (zkd.daemon, "SegmentStore", Segments),
    (zkd.daemon, "SegmentCache", Segments),
    (zkd.daemon, "DigestFiles", Segments),
    (zkd.daemon, "Keeping", Keeping),
    (zkd.daemon, "Inference", Serving),
    (zkd.daemon, "memory_bytes", lambda: 50_000_000),
    (zkd.daemon, "import_module", lambda name: None),
    (zkd.log, "get", lambda **bound: Log(**bound)),
]


@contextmanager
def inside(of: World) -> Iterator[None]:
    """Let the product see this world instead of the real one."""
    global world
    undo: list[tuple[Any, str, Any]] = []

    def put(module: Any, name: str, value: Any) -> None:
        undo.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    assert world is None
    world = of
    try:
        for module in _product():
            for name, value in list(vars(module).items()):
                double = _MODULES.get(id(value))
                if double is not None:
                    put(module, name, double)
        for module, name, value in [*_NAMED, *of.bugs]:
            put(module, name, value)
        yield
    finally:
        for module, name, value in reversed(undo):
            setattr(module, name, value)
        world = None


def _product() -> list[types.ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if name.startswith("zkd.") and "server" not in name]


Patch = tuple[Any, str, Any]  # object, name, what stands there instead
