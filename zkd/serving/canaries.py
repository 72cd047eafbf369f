"""What this node has seen of each canary, and its end when that was too bad.

    requests -> trials (zkd.core.canary) -> a look every `LOOK_S` -> the alias without its canary, by compare-and-set

Every node decides for itself, from what it has answered: what is wrong with a version shows on each of them, and no
request waits for figures to be gathered. It writes the change together with the model's head at the version that it
read, and only if the canary is still the one that it has counted. So of several nodes that decide at once one writes,
and the others find it done.

A canary that has failed gets no request of this node any more, also while ZooKeeper cannot be reached.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.canary import Predicted, Routed, Trial, Verdict, draw, drift_of, routed
from zkd.core.registry import Hand, ModelRef, Registered, read_alias, without_canary
from zkd.errors import BadRecord, BadVersion, MultiFailed, NoNode, ZooKeeperError
from zkd.paths import NodeId, Paths
from zkd.zk import Session, SetData

LOOK_S: Final = 0.1  # between looks at what came
COST: Final = 50  # times as long as the last look took, at least: so much of the daemon's time goes into looking
AGAIN_S: Final = 0.5  # after a write that was not answered
TRIES: Final = 10  # against others who change the model
NAMED_MAX: Final = 200  # aliases that metrics name; those beyond are called "other"


class Models(Protocol):
    """See `zkd.node.registry_view`."""

    @property
    def models(self) -> Mapping[str, Registered]: ...

    async def look(self, name: str) -> None: ...


@dataclass(eq=False)
class Watched:
    """`end` is what was found, from when on it gets no requests."""

    trial: Trial
    beside: int
    dropped: int = 0  # requests that a shadow should have had, and there was no room
    end: Verdict | None = None


class Canaries:
    def __init__(self, session: Session, paths: Paths, node: NodeId, models: Models, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._models = models
        self._log = log
        self._heard = asyncio.Event()
        self.is_judging = False
        self._watched: dict[tuple[str, str], Watched] = {}
        self._named: set[tuple[str, str]] = set()
        self._counts: Counter[tuple[str, str, str, str]] = Counter()  # metric, model, alias, side
        self._taken_back: Counter[str] = Counter()

    # --- Requests ---------------------------------------------------------------------------------------

    def route(self, model: Registered, ref: ModelRef, key: str | None) -> Routed:
        """Who answers this request. Raises `ModelNotFound`."""
        plain = Routed(model.number(ref))
        if ref.alias is None:
            return plain
        watched = self.watched(ref.name, ref.alias)
        if watched is None or watched.end is not None or watched.trial.canary.version not in model.versions:
            return plain
        # By chance is good enough: who wants to stay with one version gives a key.
        number = watched.trial.canary.version
        drawn = random.random() if key is None else draw(ref.name, ref.alias, number, key)
        return routed(model.aliases[ref.alias], drawn)

    def watched(self, name: str, alias_name: str) -> Watched | None:
        """What is known of the canary that this alias has now."""
        model = self._models.models.get(name)
        alias = None if model is None else model.aliases.get(alias_name)
        place = name, alias_name
        if alias is None or alias.canary is None:
            self._watched.pop(place, None)
            return None
        watched = self._watched.get(place)
        if watched is None or watched.trial.canary != alias.canary or watched.beside != alias.version:
            watched = self._watched[place] = Watched(Trial(alias.canary), alias.version)
        return watched

    def saw(
        self,
        name: str,
        alias_name: str,
        version: int,
        seconds: float,
        *,
        is_error: bool,
        predicted: Predicted | None,
    ) -> None:
        """A request to this alias has ended. Of a version that is neither side any more it is not counted."""
        watched = self.watched(name, alias_name)
        if watched is None or version not in (watched.beside, watched.trial.canary.version):
            return
        is_canary = version != watched.beside
        watched.trial.saw(is_canary, seconds, is_error=is_error, predicted=predicted)
        side = "beside" if not is_canary else "shadow" if watched.trial.canary.shadow else "canary"
        self._count("requests", name, alias_name, side)
        if is_error:
            self._count("errors", name, alias_name, side)
        self._heard.set()

    def compare(self, name: str, alias_name: str, ours: Predicted, shadows: Predicted) -> None:
        """A shadow has answered what somebody was answered."""
        watched = self.watched(name, alias_name)
        if watched is not None:
            before = watched.trial.differed
            watched.trial.compare(ours, shadows)
            if watched.trial.differed > before:
                self._count("differed", name, alias_name, "shadow")

    def dropped(self, name: str, alias_name: str) -> None:
        """There was no room for a shadow's request."""
        watched = self.watched(name, alias_name)
        if watched is not None:
            watched.dropped += 1
            self._count("dropped", name, alias_name, "shadow")

    # --- Judging ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation."""
        loop = asyncio.get_running_loop()
        while True:
            self.is_judging = self._heard.is_set()
            await self._heard.wait()  # unbounded: without requests there is nothing to judge
            self._heard.clear()
            self.is_judging = True
            began = loop.time()
            due = []
            for name, alias_name in list(self._watched):
                watched = self.watched(name, alias_name)
                if watched is not None:
                    if watched.end is None:
                        watched.end = watched.trial.verdict()
                    if watched.end is not None:
                        due.append((name, alias_name, watched, watched.end))
            pause_s = max(LOOK_S, COST * (loop.time() - began))
            for name, alias_name, watched, verdict in due:
                if not await self._take_back(name, alias_name, watched, verdict):
                    self._heard.set()
                    pause_s = max(pause_s, AGAIN_S)
            await asyncio.sleep(pause_s)

    async def _take_back(self, name: str, alias_name: str, watched: Watched, verdict: Verdict) -> bool:
        """Whether the alias has this canary no more."""
        hand = Hand(f"node {self._node}"[:256], int(time.time() * 1000), verdict.why)
        try:
            for _ in range(TRIES):
                try:
                    is_ours = await self._write(name, alias_name, watched, hand)
                except MultiFailed as error:
                    if not isinstance(error.cause, BadVersion):
                        raise error.cause from None
                    continue
                if is_ours:
                    self._taken_back[verdict.limit] += 1
                    self._log.warning(
                        "canary.taken_back",
                        name=name,
                        alias=alias_name,
                        version=watched.trial.canary.version,
                        why=verdict.why,
                    )
                await self._models.look(name)
                return True
        except (NoNode, BadRecord):
            return True  # the alias is gone, or nobody can say what it is: it has no canary to take back
        except ZooKeeperError as error:
            self._log.info("canary.not_taken_back", name=name, alias=alias_name, error=str(error))
        return False

    async def _write(self, name: str, alias_name: str, watched: Watched, hand: Hand) -> bool:
        """Whether there was something to do. Raises `MultiFailed` if somebody changed the model meanwhile."""
        paths = self._paths
        head = await self._session.get(paths.model(name))
        path = paths.alias(name, alias_name)
        found = await self._session.get(path)
        alias = read_alias(found.data)
        wanted = without_canary(alias, hand, only=watched.trial.canary)
        if wanted is alias or alias.version != watched.beside:
            return False
        await self._session.multi(
            [
                SetData(paths.model(name), head.data, head.stat.version),
                SetData(path, codec.encode(wanted), found.stat.version),
            ]
        )
        return True

    # --- Telling ----------------------------------------------------------------------------------------

    def told(self, name: str, alias_name: str) -> dict[str, Any] | None:
        """What this node knows of an alias's canary; None if it has none."""
        watched = self.watched(name, alias_name)
        if watched is None:
            return None
        trial, canary = watched.trial, watched.trial.canary
        sides = trial.sides()
        seen: dict[str, Any] = {
            "version": canary.version,
            "beside": watched.beside,
            "percent": canary.percent,
            "shadow": canary.shadow,
            "end": None if watched.end is None else watched.end.why,
        }
        for side, name_of_side, is_canary in ((sides.canary, "canary", True), (sides.beside, "others", False)):
            seen[name_of_side] = {
                "requests": trial.requests[is_canary],
                "errors": trial.errors[is_canary],
                "p50_ms": _ms(side.quantile_s(0.5)),
                "p99_ms": _ms(side.quantile_s(0.99)),
            }
        drift = drift_of(sides.beside.sample.kept, sides.canary.sample.kept)
        seen["drift"] = round(drift.psi, 4) if drift.psi > drift.noise else 0.0
        if canary.shadow:
            seen |= {"compared": trial.compared, "differed": trial.differed, "dropped": watched.dropped}
        return seen

    def _count(self, metric: str, name: str, alias_name: str, side: str) -> None:
        label = name, alias_name
        if label not in self._named:
            if len(self._named) >= NAMED_MAX:
                label = "other", ""
            else:
                self._named.add(label)
        self._counts[metric, *label, side] += 1

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_canaries", {}, len(self._watched)
        for (metric, name, alias_name, side), count in self._counts.items():
            yield f"zkd_canary_{metric}_total", {"model": name, "alias": alias_name, "side": side}, count
        for limit, count in self._taken_back.items():
            yield "zkd_canaries_taken_back_total", {"limit": limit}, count


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 3)
