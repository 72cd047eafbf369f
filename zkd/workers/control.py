"""Messages between the pool and its fork server, one packet each on a SOCK_SEQPACKET socket.

Packets need no framing and carry a new worker's descriptors with the very message that asks for it.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from zkd.records import KernelSignature
from zkd.workers.call import ModuleFault

PACKET_BYTES_MAX: Final = 128 * 1024  # well below the socket buffer, which bounds a packet
KERNELS_IN_A_PACKET: Final = 16
DOC_CHARS_MAX: Final = 2000


class Configure(Struct, frozen=True, tag=True):
    modules: list[str]  # to import after zkd.kernels
    entry_points: bool  # also those that installed packages name
    excluded: list[str]  # but none of these: importing it has ended a fork server before
    blob_dir: str
    pool: str  # a name for this pool's files, unlike that of any other
    memory: int | None
    made_dir: str = ""  # where rows that a kernel gave are put; none are taken without it
    writable: list[str] | None = None  # where kernels may change files beside these two; None: wherever they can


class Spawn(Struct, frozen=True, tag=True):
    """Fork a worker on the descriptors that come with this packet: where it takes calls, answers, and prints to."""

    worker: int


class Signal(Struct, frozen=True, tag=True):
    """Send this signal to the worker and to whatever it has started."""

    worker: int
    signal: int


class Importing(Struct, frozen=True, tag=True):
    """Sent before a module of kernels is imported: if nothing comes after it, that module is to blame."""

    module: str | None  # None: all of them are


class Faulty(Struct, frozen=True, tag=True):
    fault: ModuleFault


class Kernels(Struct, frozen=True, tag=True):
    kernels: list[KernelSignature]


class Serving(Struct, frozen=True, tag=True):
    """The fork server is ready to fork."""


class Forked(Struct, frozen=True, tag=True):
    worker: int
    pid: int


class Exited(Struct, frozen=True, tag=True):
    worker: int
    status: int  # as from waitpid; negative: it never lived


Order: TypeAlias = Configure | Spawn | Signal
Report: TypeAlias = Importing | Faulty | Kernels | Serving | Forked | Exited

encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(Order).decode
decode_report = msgspec.json.Decoder(Report).decode
