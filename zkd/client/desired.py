"""What people want of the cluster, as znodes that they write and zkd only reads: node states, limits, schedules.

Each is written whole, and the last to say something wins, so a write whose answer is lost is simply said again.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.errors import BadVersion, MultiFailed, NodeExists, NoNode, OutcomeUnknown
from zkd.paths import parent
from zkd.zk import Create, SetData, ensure_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.client.dropbox import DropBox


async def say(box: DropBox, path: str, text: bytes) -> None:
    """Have `text` stand at `path`."""
    write: SetData | Create = SetData(path, text, ANY_VERSION)
    give_up = time.monotonic() + OUTAGE_MAX_S
    while True:
        try:
            await box.session.multi([write])
            return
        except MultiFailed as error:
            if isinstance(error.cause, NodeExists):
                write = SetData(path, text, ANY_VERSION)
            elif not isinstance(error.cause, NoNode):
                raise error.cause from None
            elif isinstance(write, SetData):
                write = Create(path, text)  # born with what it says: those whom it concerns watch and read it
            else:
                with suppress(OutcomeUnknown):  # it is there or it is not, and the next try sees
                    await ensure_path(box.session, parent(path))
        except NO_ANSWER as error:
            await box.catch_up(give_up, error)


async def change(box: DropBox, path: str, edit: Callable[[bytes], bytes]) -> None:
    """Have what stands at `path` edited, with nobody else's edit lost. Raises `NoNode`."""
    give_up = time.monotonic() + OUTAGE_MAX_S
    while True:
        found = await box.read(path)
        edited = edit(found.data)
        if edited == found.data:
            return
        try:
            await box.session.set(path, edited, found.stat.version)
            return
        except BadVersion:
            continue
        except NO_ANSWER as error:
            await box.catch_up(give_up, error)


async def unsay(box: DropBox, path: str) -> bool:
    """Have nothing stand at `path`; whether something did."""
    give_up = time.monotonic() + OUTAGE_MAX_S
    was_there = False
    while True:
        try:
            await box.session.delete(path, ANY_VERSION)
            return True
        except NoNode:
            return was_there
        except NO_ANSWER as error:
            was_there = was_there or isinstance(error, OutcomeUnknown)
            await box.catch_up(give_up, error)


def whoami() -> str:
    """Who says so, for those who look later."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this uid
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
