"""What is registered under a name, also if this node has not heard of it yet: then it looks, once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from zkd.core.registry import Registered
from zkd.errors import ModelNotFound, NotPredicted, ZooKeeperError

T = TypeVar("T")

LOOK_S: Final = 1.0
AGAIN_S: Final = 0.05  # so rarely for one name: who asks on and on for what is not there costs the tree no more
AT_ONCE: Final = 4
REMEMBERED: Final = 1000  # names


class Models(Protocol):
    """See `zkd.node.registry_view`."""

    @property
    def models(self) -> Mapping[str, Registered]: ...

    async def look(self, name: str) -> None: ...


class Lookups:
    """`group` owns the looks; without one there are none."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._looks: dict[str, asyncio.Task[tuple[float, str | None]]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.group: asyncio.TaskGroup | None = None

    async def found(self, name: str, choose: Callable[[Registered], T], deadline: float) -> T:
        """What this makes of the model of this name, which is looked at anew where it raises `ModelNotFound`.

        Raises `NotPredicted`.
        """
        try:
            return choose(self._known(name))
        except ModelNotFound:
            await self._look_up(name, deadline)
        try:
            return choose(self._known(name))
        except ModelNotFound as error:
            raise NotPredicted("not_found", str(error)) from None

    def _known(self, name: str) -> Registered:
        found = self._models.models.get(name)
        if found is None:
            raise ModelNotFound(f"there is no model {name}")
        return found

    async def _look_up(self, name: str, deadline: float) -> None:
        now = asyncio.get_running_loop().time()
        look = self._looks.get(name)
        if look is None or (look.done() and look.result()[0] + AGAIN_S <= now):
            if self.group is None:
                return
            if len(self._looks) >= REMEMBERED:
                self._looks = {each: look for each, look in self._looks.items() if not look.done()}
            look = self._looks[name] = self.group.create_task(self._look(name))
        await asyncio.wait({look}, timeout=max(0.0, deadline - now))
        if not look.done():
            raise NotPredicted("unavailable", f"{name} is not known here, and looking it up takes too long", 1.0)
        if (fault := look.result()[1]) is not None:
            raise NotPredicted("unavailable", f"{name} is not known here, and cannot be looked up: {fault}", 1.0)

    async def _look(self, name: str) -> tuple[float, str | None]:
        """When that was, and what was wrong."""
        fault = None
        try:
            async with asyncio.timeout(LOOK_S), self._turns:
                await self._models.look(name)
        except (TimeoutError, ZooKeeperError) as error:
            fault = str(error) or f"no answer within {LOOK_S:g} s"
        return asyncio.get_running_loop().time(), fault
