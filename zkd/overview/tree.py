"""One look at the tree. What is immutable there is read once, everything else anew, in a bounded number of packets.

Whoever writes into the tree may be hostile or newer than we are: a record that cannot be read is left out and
counted, and costs nobody else's place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

from zkd import codec
from zkd.core.atlas import Atlas
from zkd.core.datasets import assemble, is_dataset_name, read_chunk, read_holding, read_manifest
from zkd.core.datasets import read_head as read_dataset_head
from zkd.core.registry import is_alias_name, is_model_name, read_alias
from zkd.core.registry import read_head as read_model_head
from zkd.errors import BadRecord, NoNode, ZooKeeperError
from zkd.jobs import DONE, Coordinator, Job, JobState
from zkd.manifests import Manifest
from zkd.overview.copies import dataset_seen
from zkd.overview.seen import (
    AliasSeen,
    Counts,
    DatasetSeen,
    JobSeen,
    ModelSeen,
    NodePhase,
    NodeSeen,
    Overview,
    SyncSeen,
)
from zkd.paths import Paths
from zkd.records import Leader, Node, NodeStatus, OperatorState
from zkd.zk import Session, Znode

READ_AT_ONCE = 100
NODES_MAX = 256
DATASETS_MAX = 64
HOLDINGS_MAX = 2_000  # nodes times datasets
JOBS_MAX = 40
MODELS_MAX = 64
SYNC_MAX = 100

T = TypeVar("T")


class Reader:
    """Looks at the tree again and again. With an `atlas`, which a node keeps anyway, datasets cost no read."""

    def __init__(self, session: Session, paths: Paths, atlas: Atlas | None = None) -> None:
        self._session = session
        self._paths = paths
        self._atlas = atlas
        self._editions: dict[str, tuple[int, Manifest, int]] = {}  # by path: its life, and which parts have rows
        self._omitted: dict[str, int] = {}

    async def read(self) -> Overview:
        """Raises `ZooKeeperError` while the tree cannot be read."""
        self._omitted = {}
        paths = self._paths
        leader, _ = await self._one(paths.leader, Leader)
        nodes, live = await self._nodes(leader)
        here = [node for node in nodes if node.state != "away"]
        return Overview(
            root=paths.root,
            at_ms=int(time.time() * 1000),
            leader=None if leader is None else leader.node,
            epoch=0 if leader is None else leader.epoch,
            counts=Counts(
                tasks=await self._count(paths.tasks),
                results=await self._count(paths.results),
                dead=await self._count(paths.dead),
                schedules=await self._count(paths.schedules),
                slots=sum(node.slots for node in here),
                used=sum(node.used for node in here),
                running=sum(len(node.running) for node in here),
            ),
            nodes=nodes,
            datasets=self._of_atlas(self._atlas, live) if self._atlas else await self._datasets(live),
            jobs=await self._jobs(),
            models=await self._models(),
            sync=await self._sync(),
            omitted={what: count for what, count in self._omitted.items() if count},
        )

    # --- Nodes ------------------------------------------------------------------------------------------

    async def _nodes(self, leader: Leader | None) -> tuple[list[NodeSeen], dict[str, str]]:
        """The nodes, and of those that are here the incarnation."""
        paths = self._paths
        listed, heard, said = await self._lists([paths.nodes, paths.statuses, paths.node_states])
        here = set(listed)
        names = self._some(
            "nodes", sorted({*listed, *heard, *said}, key=lambda name: (name not in here, name)), NODES_MAX
        )
        entries = await self._records([paths.node(name) for name in names], Node)
        statuses = await self._records([paths.status(name) for name in names], NodeStatus)
        states = await self._records([paths.node_state(name) for name in names], OperatorState)
        found = []
        for name, (entry, _), (status, heard_ms), (wanted, _) in zip(names, entries, statuses, states, strict=True):
            if status is not None and entry is not None and status.incarnation != entry.incarnation:
                status, heard_ms = None, 0  # of a former life
            found.append(_node_seen(name, entry, status, heard_ms, wanted, leader))
        return found, {node.node: node.incarnation for node in found if node.state != "away"}

    # --- Datasets ---------------------------------------------------------------------------------------

    def _of_atlas(self, atlas: Atlas, live: dict[str, str]) -> list[DatasetSeen]:
        found = []
        for name in self._some("datasets", sorted(atlas.datasets), DATASETS_MAX):
            edition = atlas.datasets[name].pick(None)
            if edition is not None:
                version = edition.manifest.version
                said = atlas.holdings.get(name, {})
                held = [each.parts.get(version, 0) for node, each in said.items() if live.get(node) == each.incarnation]
                found.append(dataset_seen(edition.manifest, _filled(edition.parts), held))
        return found

    async def _datasets(self, live: dict[str, str]) -> list[DatasetSeen]:
        paths = self._paths
        (listed,) = await self._lists([paths.datasets])
        names = self._some("datasets", sorted(filter(is_dataset_name, listed)), DATASETS_MAX)
        heads = await self._read([paths.dataset(name) for name in names])
        holders = await self._lists([f"{paths.holdings}/{name}" for name in names])
        found, left = [], HOLDINGS_MAX
        for name, head, nodes in zip(names, heads, holders, strict=True):
            try:
                edition = await self._edition(name, read_dataset_head(_data(head)).current)
            except BadRecord:
                continue  # nobody has finished a version of it, or what stands there is none
            asked = [node for node in nodes if node in live][:left]
            left -= len(asked)
            held = []
            for node, got in zip(asked, await self._read([paths.holding(name, node) for node in asked]), strict=True):
                with suppress(BadRecord):
                    holding = read_holding(_data(got))
                    if holding.incarnation == live[node]:
                        held.append(holding.parts.get(edition[0].version, 0))
            found.append(dataset_seen(*edition, held))
        return found

    async def _edition(self, name: str, version: int) -> tuple[Manifest, int]:
        path = self._paths.version(name, version)
        stat = await self._session.exists(path)
        known = self._editions.get(path)
        if stat is None:
            raise BadRecord("$", f"expected {path} to be there")
        if known is None or known[0] != stat.czxid:
            (text,) = await self._read([path])
            manifest = read_manifest(name, version, _data(text))
            texts = await self._read([self._paths.chunk(name, digest) for digest in manifest.chunks])
            named = zip(manifest.chunks, texts, strict=True)
            chunks = {digest: read_chunk(digest, _data(got)) for digest, got in named}
            known = self._editions[path] = (stat.czxid, manifest, _filled(assemble(manifest, chunks)))
            while len(self._editions) > 2 * DATASETS_MAX:
                del self._editions[next(iter(self._editions))]
        return known[1], known[2]

    # --- Jobs, models, locks ----------------------------------------------------------------------------

    async def _jobs(self) -> list[JobSeen]:
        paths = self._paths
        names, coordinated = await self._lists([paths.jobs, paths.coordinators])
        active = set(coordinated)
        names = self._some("jobs", sorted(names, key=lambda name: (name not in active, name)), JOBS_MAX)
        jobs = await self._read([paths.job(name) for name in names])
        states = await self._records([paths.job_state(name) for name in names], JobState)
        offices = await self._records([paths.coordinator(name) for name in names], Coordinator)
        found = []
        for name, got, (state, _), (office, _) in zip(names, jobs, states, offices, strict=True):
            if isinstance(got, Znode):
                found.append(_job_seen(name, got, state, office))
        return sorted(found, key=lambda job: (job.phase in DONE, -job.dropped_ms, job.id))

    async def _models(self) -> list[ModelSeen]:
        paths = self._paths
        (listed,) = await self._lists([paths.models])
        names = self._some("models", sorted(filter(is_model_name, listed)), MODELS_MAX)
        heads = await self._read([paths.model(name) for name in names])
        versions = await self._lists([paths.model_versions(name) for name in names])
        aliases = await self._lists([paths.aliases(name) for name in names])
        found = []
        for name, head, numbers, listed in zip(names, heads, versions, aliases, strict=True):
            known = sorted(filter(is_alias_name, listed))[:20]
            pointing: dict[str, AliasSeen] = {}
            for alias, got in zip(known, await self._read([paths.alias(name, each) for each in known]), strict=True):
                with suppress(BadRecord):
                    read = read_alias(_data(got))
                    beside = read.canary
                    pointing[alias] = AliasSeen(
                        read.version, *((beside.version, beside.percent, beside.shadow) if beside else ())
                    )
            with suppress(BadRecord):
                if numbers:
                    found.append(ModelSeen(name, read_model_head(_data(head)).latest, len(numbers), pointing))
        return found

    async def _sync(self) -> list[SyncSeen]:
        """sync/<kind>/<name>, with how many hold it or wait for it; nothing where nobody uses such things."""
        top = f"{self._paths.root}/sync"
        (kinds,) = await self._lists([top])
        found = []
        for kind, names in zip(kinds, await self._lists([f"{top}/{kind}" for kind in kinds]), strict=True):
            shown = self._some(kind, sorted(names), SYNC_MAX)
            members = await self._lists([f"{top}/{kind}/{name}" for name in shown])
            found += [SyncSeen(kind, name, len(each)) for name, each in zip(shown, members, strict=True)]
        return found

    # --- Reading ----------------------------------------------------------------------------------------

    def _some(self, what: str, names: list[str], most: int) -> list[str]:
        self._omitted[what] = max(0, len(names) - most)
        return names[:most]

    async def _count(self, path: str) -> int:
        stat = await self._session.exists(path)
        return 0 if stat is None else stat.num_children

    async def _lists(self, paths: list[str]) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(paths), READ_AT_ONCE):
            got = await self._session.children_many(paths[start : start + READ_AT_ONCE])
            found += [[] if isinstance(each, ZooKeeperError) else sorted(each) for each in got]
        return found

    async def _read(self, paths: list[str]) -> list[Znode | ZooKeeperError]:
        found: list[Znode | ZooKeeperError] = []
        for start in range(0, len(paths), READ_AT_ONCE):
            found += await self._session.get_many(paths[start : start + READ_AT_ONCE])
        return found

    async def _records(self, paths: list[str], kind: type[T]) -> list[tuple[T | None, int]]:
        """What stands at each, None for what does not or is none, and when it was written."""
        return [self._decoded(got, kind) for got in await self._read(paths)]

    def _decoded(self, got: Znode | ZooKeeperError, kind: type[T]) -> tuple[T | None, int]:
        if isinstance(got, ZooKeeperError):
            return None, 0
        try:
            return codec.decode(got.data, kind), got.stat.mtime
        except BadRecord:
            self._omitted["unreadable"] = self._omitted.get("unreadable", 0) + 1
            return None, 0

    async def _one(self, path: str, kind: type[T]) -> tuple[T | None, int]:
        try:
            return self._decoded(await self._session.get(path), kind)
        except NoNode:
            return None, 0


def _node_seen(
    name: str,
    entry: Node | None,
    status: NodeStatus | None,
    heard_ms: int,
    wanted: OperatorState | None,
    leader: Leader | None,
) -> NodeSeen:
    fields: dict[str, Any] = {"node": name, "state": _phase(entry, wanted), "heard_ms": heard_ms}
    if entry is not None:
        fields |= {
            "incarnation": entry.incarnation,
            "leads": leader is not None and leader.incarnation == entry.incarnation,
            "slots": entry.slots,
            "version": entry.version,
            "zone": entry.zone,
            "labels": entry.labels,
            "host": entry.host,
            "address": entry.address,
        }
        if status is not None:
            fields |= {"used": status.slots_used, "queued": status.queued, "running": status.running}
    if status is not None:
        for field in ("done", "failed", "memory_bytes", "load_1m", "uptime_s", "loop_lag_s"):
            fields[field] = getattr(status, field)
    return NodeSeen(**fields)


def _phase(entry: Node | None, wanted: OperatorState | None) -> NodePhase:
    if entry is None:
        return "away"
    if entry.draining:
        return "draining"
    return "active" if wanted is None else wanted.state


def _job_seen(name: str, got: Znode, state: JobState | None, office: Coordinator | None) -> JobSeen:
    if state is not None and state.czxid != got.stat.czxid:
        state = None  # of an earlier job of this id
    fields: dict[str, Any] = {"id": name, "dropped_ms": got.stat.ctime}
    try:
        job = codec.decode(got.data, Job)
        fields |= {"model": job.model, "dataset": job.dataset, "desired": job.desired}
    except BadRecord as error:
        fields["error"] = str(error)[:500]
    if state is not None:
        told, summary = state.progress, state.summary
        fields |= {"phase": state.phase, "round": told.round, "loss": told.loss, "held_loss": told.held_loss}
        fields |= {"slope": told.slope, "rows_s": told.rows_s if state.phase == "training" else None}
        fields["dataset"] = state.dataset or fields.get("dataset", "")
        if state.error is not None:
            fields["error"] = state.error[:500]
        if summary is not None:
            fields |= {"reason": summary.reason, "round": summary.rounds, "loss": summary.loss}
            fields["held_loss"] = summary.held_loss
    if office is not None:
        fields["coordinator"] = office.node
    return JobSeen(**fields)


def _filled(parts: Iterable[Iterable[Any]]) -> int:
    """The parts that have rows, as bits."""
    return int("".join("01"[any(ref.rows for ref in part)] for part in reversed(tuple(parts))) or "0", 2)


def _data(got: Znode | ZooKeeperError) -> bytes:
    if isinstance(got, ZooKeeperError):
        raise BadRecord("$", f"expected a znode that can be read: {got}")
    return got.data
