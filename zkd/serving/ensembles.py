"""Several models asked as one: members in parallel on several nodes, and what they say together before the deadline.

    members -> nodes, by turns from this one on -> votes until all have voted, or the time is nearly over -> one answer

A member whose node is not there is asked here. One whose node says nothing has no vote, and that node is not asked
again for a while; with a quorum of votes there is an answer nevertheless.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec import Struct
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.ensembles import Combined, EnsembleRequest, Vote, combined, expect_sound
from zkd.core.registry import ModelRef, Registered, split_ref
from zkd.errors import BadRecord, NotPredicted, ZooKeeperError
from zkd.paths import NodeId
from zkd.serving.requests import JSON_TYPE, Request
from zkd.training.peers import Peers

if TYPE_CHECKING:
    import aiohttp

MARGIN_SHARE: Final = 0.1  # of the time there is, for putting together what came...
MARGIN_S_MAX: Final = 0.02  # ...and at most so much
AVOID_S: Final = 5.0  # nodes that did not answer in time
FOLLOW_S: Final = 60.0  # after the last request nobody follows who is here
KNOWN_SHARE: Final = 0.25  # of the time there is, for finding out who is here, the first time
ANSWER_BYTES_MAX: Final = 16 * 2**20
ELSEWHERE: Final = frozenset({"not_found", "fetching", "busy", "draining", "unavailable"})


class Answer(Protocol):
    @property
    def body(self) -> bytes | memoryview: ...


class Models(Protocol):
    """See `zkd.node.registry_view`."""

    @property
    def models(self) -> Mapping[str, Registered]: ...

    async def look(self, name: str) -> None: ...


Predict = Callable[[ModelRef, Request, float], Awaitable[Answer]]


class _Elsewhere(NotPredicted):
    """That node does not answer, and another one may."""


class Said(Struct, frozen=True):
    """What is read of a member's answer."""

    version: int
    prediction: list[Any]
    node: str = ""
    is_canary: bool = False
    probabilities: list[list[float | None]] | None = None


class Refusal(Struct, frozen=True):
    error: str = ""
    kind: str = "failed"


class Ensembles:
    """`predict` asks this node."""

    def __init__(
        self,
        node: NodeId,
        predict: Predict,
        models: Models,
        peers: Peers,
        token: Callable[[], str | None],
        deadline_s: Callable[[], float],
        log: Log,
    ) -> None:
        self._node = node
        self._predict = predict
        self._models = models
        self._peers = peers
        self._token = token
        self._deadline_s = deadline_s
        self._log = log
        self._turn = 0
        self._used = asyncio.Event()
        self._avoided: dict[NodeId, float] = {}  # until when
        self._counts: Counter[str] = Counter()
        self._votes: Counter[str] = Counter()
        self.http: aiohttp.ClientSession | None = None

    async def run(self) -> None:
        """Know who is here while somebody needs it. Ends only by cancellation."""
        while True:
            await self._used.wait()  # unbounded: most clusters have no use for this
            with self._peers.followed(lambda: None):
                while self._used.is_set():
                    self._used.clear()
                    await asyncio.sleep(FOLLOW_S)

    async def answer(self, body: bytes, key: str | None, arrived: float) -> bytes:
        """The answer to a request that came at this time of the loop. Raises `NotPredicted`."""
        try:
            asked = codec.decode(body, EnsembleRequest)
            expect_sound(asked)
        except BadRecord as error:
            raise NotPredicted("bad_request", str(error)) from None
        loop = asyncio.get_running_loop()
        wanted_s = self._deadline_s() if asked.deadline_ms is None else asked.deadline_ms / 1e3
        deadline = arrived + wanted_s
        margin_s = min(MARGIN_SHARE * wanted_s, MARGIN_S_MAX)
        self._used.set()
        with suppress(TimeoutError):  # then all are asked here
            await self._peers.known(KNOWN_SHARE * wanted_s)
        votes, refusals = await self._gathered(asked, asked.key or key, deadline - margin_s)
        try:
            if len(votes) < asked.votes_needed:
                raise _too_few(asked, votes, refusals, wanted_s)
            said = {member: await self._vote(member, each, deadline) for member, each in votes.items()}
            told = combined(said, asked)
        except BadRecord as error:
            self._counts["bad_request"] += 1
            raise NotPredicted("bad_request", str(error)) from None
        except NotPredicted as error:
            self._counts[error.kind] += 1
            raise
        self._counts["ok" if len(votes) == len(asked.members) else "some"] += 1
        return msgspec.json.encode(self._told(asked, told, votes, refusals, loop.time() - arrived))

    def _told(
        self,
        asked: EnsembleRequest,
        told: Combined,
        votes: Mapping[str, Said],
        refusals: Mapping[str, NotPredicted],
        took_s: float,
    ) -> dict[str, Any]:
        members: list[dict[str, Any]] = []
        for member in asked.members:
            vote, ref = votes.get(member), split_ref(member)
            if vote is None:
                refusal = refusals[member]
                members.append({"member": member, "voted": False, "kind": refusal.kind, "why": str(refusal)[:500]})
            else:
                about = {"model": ref.name, "version": vote.version, "alias": ref.alias, "is_canary": vote.is_canary}
                members.append({"member": member, "voted": True, **about, "node": vote.node})
        return {
            "combine": asked.combine,
            "voted": len(votes),
            "quorum": asked.votes_needed,
            "members": members,
            "prediction": told.prediction,
            **({} if told.probabilities is None else {"probabilities": told.probabilities, "classes": told.classes}),
            "rows": len(told.prediction),
            "node": self._node,
            "ms": {"total": round(took_s * 1e3, 3)},
        }

    # --- Members ----------------------------------------------------------------------------------------

    async def _gathered(
        self, asked: EnsembleRequest, key: str | None, until: float
    ) -> tuple[dict[str, Said], dict[str, NotPredicted]]:
        """What members answered until then, and why others have not."""
        votes: dict[str, Said] = {}
        refusals: dict[str, NotPredicted] = {}

        async def ask(member: str, node: NodeId | None) -> None:
            try:
                async with asyncio.timeout_at(until):
                    votes[member] = await self._ask(member, node, asked, key, until)
                    self._votes["voted"] += 1
            except TimeoutError:
                self._votes["late"] += 1
                who = self._node if node is None else node
                refusals[member] = NotPredicted("deadline", f"no answer from node {who} in time")
                if node is not None:
                    self._avoided[node] = asyncio.get_running_loop().time() + AVOID_S
            except NotPredicted as error:
                self._votes["failed"] += 1
                refusals[member] = error

        async with asyncio.TaskGroup() as group:
            for member, node in zip(asked.members, self._places(len(asked.members)), strict=True):
                group.create_task(ask(member, node))
        return votes, refusals

    def _places(self, count: int) -> list[NodeId | None]:
        """Where each member is asked; None: here. The first one always, others by turns."""
        now = asyncio.get_running_loop().time()
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        others = [
            name
            for name, node in sorted(self._peers.nodes.items())
            if name != self._node and name not in self._avoided and node.address and not node.draining
        ]
        places: list[NodeId | None] = [None]
        while len(places) < count:
            self._turn += 1
            at = self._turn % (len(others) + 1)
            places.append(others[at - 1] if at else None)
        return places

    async def _ask(
        self, member: str, node: NodeId | None, asked: EnsembleRequest, key: str | None, until: float
    ) -> Said:
        loop = asyncio.get_running_loop()
        entry = None if node is None else self._peers.nodes.get(node)
        if node is not None and entry is not None and entry.address is not None:
            try:
                return await self._of(node, entry.address, member, asked, key, until)
            except _Elsewhere:
                pass  # this node may have what that one has not, or not yet
            except OSError as error:  # nobody there, or nobody who answers: this node can do it as well
                self._avoided[node] = loop.time() + AVOID_S
                self._log.info("ensemble.node_left", node=node, member=member, error=str(error)[:200])
        request = Request("json", bytes(asked.rows), None, asked.missing, until - loop.time(), key)
        return _said((await self._predict(split_ref(member), request, loop.time())).body)

    async def _of(
        self, node: NodeId, address: str, member: str, asked: EnsembleRequest, key: str | None, until: float
    ) -> Said:
        """Another node's answer. Raises `NotPredicted`; `OSError` if it gives none."""
        import aiohttp

        assert self.http is not None
        left_ms = (until - asyncio.get_running_loop().time()) * 1e3
        body = {"rows": asked.rows, "missing": asked.missing, "deadline_ms": max(left_ms, 1.0)}
        text = msgspec.json.encode(body | ({} if key is None else {"key": key}))
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": JSON_TYPE}
        url = f"{address}/v1/models/{member}/predict"
        try:
            async with self.http.post(url, data=text, headers=headers, allow_redirects=False) as answer:
                got = bytearray()
                async for piece in answer.content.iter_any():
                    got += piece
                    if len(got) > ANSWER_BYTES_MAX:
                        raise NotPredicted("too_large", f"node {node} answers more than {ANSWER_BYTES_MAX} bytes")
                if answer.status == 200:
                    return _said(got)
        except (aiohttp.ClientError, asyncio.IncompleteReadError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from None
        refusal = Refusal()
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            refusal = msgspec.json.decode(got, type=Refusal)
        if refusal.kind in ELSEWHERE:
            raise _Elsewhere(refusal.kind, refusal.error[:1000])
        raise NotPredicted(refusal.kind, refusal.error[:1000] or f"node {node} says HTTP {answer.status}")

    async def _vote(self, member: str, said: Said, deadline: float) -> Vote:
        """What a member says, with its classes. Raises `NotPredicted`."""
        name = split_ref(member).name
        model = self._models.models.get(name)
        if model is None or said.version not in model.versions:  # another node has seen it before us
            with suppress(TimeoutError, ZooKeeperError):
                async with asyncio.timeout_at(deadline):
                    await self._models.look(name)
            model = self._models.models.get(name)
        if model is None or said.version not in model.versions:
            raise NotPredicted("unavailable", f"{name}@{said.version} is not known here yet", 1.0)
        return Vote(said.prediction, said.probabilities, model.versions[said.version].classes)  # type: ignore[arg-type]

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for code, count in self._counts.items():
            yield "zkd_ensemble_requests_total", {"code": code}, count
        for outcome, count in self._votes.items():
            yield "zkd_ensemble_votes_total", {"outcome": outcome}, count


def _said(body: bytes | bytearray | memoryview) -> Said:
    """Raises `NotPredicted`."""
    try:
        return msgspec.json.decode(body, type=Said)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotPredicted("failed", f"expected an answer of a model server: {error}") from None


def _too_few(
    asked: EnsembleRequest, votes: Mapping[str, Said], refusals: Mapping[str, NotPredicted], wanted_s: float
) -> NotPredicted:
    """Why there is no quorum: the request's own fault if somebody says so."""
    words = "; ".join(f"{member}: {str(error)[:300]}" for member, error in refusals.items())
    kinds = [error.kind for error in refusals.values()]
    kind = next((each for each in ("bad_request", "too_large", "not_found", "deadline") if each in kinds), kinds[0])
    count = f"{len(votes)} of {len(asked.members)} members voted within {wanted_s:g} s, expected {asked.votes_needed}"
    retry_s = max((error.retry_after_s or 0.0 for error in refusals.values()), default=0.0)
    return NotPredicted(kind, f"{count}: {words}", retry_s or None)
