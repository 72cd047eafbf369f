"""`client.datasets`: put tables into the cluster, add to them, open them, remove them.

    await client.datasets.put("digits", {"X": X, "y": y}, key=None, label="y", replicas=2)
    table = await (await client.datasets.open("digits")).read()

A version is visible to everybody when each of its parts has its quorum of durable copies, and to nobody before; what
fails on the way leaves nothing to see. Rows are read, sorted by part and spilled in threads of this program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zkd import codec
from zkd.client import copies
from zkd.client.dataset import Dataset
from zkd.client.desired import whoami
from zkd.client.editions import Editions, expect_name
from zkd.client.intake import Wanted, partitioned, source_of
from zkd.client.merging import Merging
from zkd.client.quorums import quorum
from zkd.client.sending import Progress, Sending
from zkd.core.datasets import chunk_digest, split_name
from zkd.errors import BadRecord, BadRows, DataDamaged, DatasetExists, DatasetNotFound, DataUnavailable
from zkd.manifests import CHUNK_PARTS, PARTS_MAX, REPLICAS_MAX, Manifest

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.copies import Scene
    from zkd.client.dropbox import DropBox
    from zkd.client.editions import Draft
    from zkd.client.plane import Plane
    from zkd.core.datasets import Parts
    from zkd.tables.partition import Partition


REPLICAS = 2  # of who does not say


class Datasets:
    def __init__(self, client: Client, box: DropBox, plane: Plane) -> None:
        self._client = client
        self._editions = Editions(box)
        self._plane = plane

    # --- Looking ------------------------------------------------------------------------------------------

    async def list(self) -> dict[str, Manifest]:
        """The version of each dataset that readers get. One that cannot be believed is left out."""
        found = {}
        for name in await self._editions.current():
            try:
                found[name] = await self._editions.manifest(name)
            except (DatasetNotFound, DataDamaged):
                continue
        return found

    async def versions(self, name: str) -> dict[int, Manifest]:
        """All versions of a dataset, the oldest first. Raises `DatasetNotFound`."""
        return {number: await self._editions.manifest(name, number) for number in await self._editions.versions(name)}

    async def open(self, name: str, version: int | None = None) -> Dataset:
        """A version of a dataset, ``NAME`` or ``NAME@VERSION``; by default the one that readers get now.

        Raises `DatasetNotFound`, `DataDamaged` if what stands in the tree contradicts itself.
        """
        try:
            plain, said = split_name(name)
        except BadRecord as error:
            raise BadRows("name", error.expected) from None
        manifest = await self._editions.manifest(plain, said if version is None else version)
        return Dataset(self._plane, manifest, await self._editions.parts(manifest))

    # --- Making -------------------------------------------------------------------------------------------

    async def put(
        self,
        name: str,
        data: Any,
        *,
        key: str | None = None,
        label: str | None = None,
        parts: int | None = None,
        replicas: int | None = None,
        store: str | None = None,
        replace: bool = False,
        progress: Callable[[Progress], None] | None = None,
        header: bool | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Keep a table as a dataset: a mapping of arrays, an (async) iterator of such, or the path of a file.

        `key` names the column by which rows are found, and by whose hash they go to parts; None: the number of the
        row. `label` names the column that models predict. `parts` is a power of two; by default as many as make
        shares even, fewer for small tables. `replicas` is 2 by default: on a single node there is one copy, until
        another node comes. `replace` makes a new version of a dataset that is there. `header` and `dtypes` are for
        CSV files (`zkd.tables.csv_files`).

        `store` has the parts lie at ``s3://bucket/prefix`` or ``file:///directory`` instead of on nodes, and takes no
        `replicas`. Nothing there is ever removed.

        Iterators are advanced in a thread. More rows than memory are spilled to $TMPDIR, which needs as much room
        as they take. Raises `BadRows`, `DatasetExists`, `DataUnavailable`; nothing is to be seen then.
        """
        source = source_of(data, header, dtypes)  # says what is wrong with it before anything else
        expect_name(name)
        _expect_counts(parts, replicas)
        if not replace and name in await self._editions.current():
            raise DatasetExists(
                f"there is a dataset {name} already: `replace` makes a new version of it, `append` adds rows"
            )
        scene = await copies.look(self._client, name)
        if store is None:
            most = REPLICAS if replicas is None else replicas
            wanted = Wanted(key, label, parts, most, quorum_on(scene, most, is_asked_for=replicas is not None))
            expect_keepers(name, scene, most, wanted.quorum)
        else:
            store = _expect_store(store, replicas)
            wanted = Wanted(key, label, parts, 1, 1)

        def is_free(draft: Draft) -> None:
            if draft.current is not None and not replace:
                raise DatasetExists(f"somebody else made the dataset {name} meanwhile; nothing was changed")

        return await self._make(name, source, wanted, scene, None, store, is_free, progress)

    async def append(
        self, name: str, data: Any, *, progress: Callable[[Progress], None] | None = None, header: bool | None = None
    ) -> Dataset:
        """Make a version that has these rows after those of the present one, whose segments it shares.

        A part that has many segments gets one in place of the last ones; versions before keep theirs. Columns are the
        same; text may be wider. Raises as `put`, and `DatasetNotFound`.
        """
        old = await self.open(expect_name(name))
        manifest = old.manifest
        scene = await copies.look(self._client, name)
        wanted = Wanted(
            manifest.key,
            manifest.label,
            manifest.parts,
            manifest.replicas,
            quorum_on(scene, manifest.replicas, is_asked_for=manifest.quorum is None),
            manifest.columns,
            manifest.rows,
        )
        if manifest.store is None:
            expect_keepers(name, scene, wanted.replicas, wanted.quorum)

        def is_same(draft: Draft) -> None:
            if draft.current != manifest.version:
                raise DatasetExists(f"somebody else made version {draft.current} of {name} meanwhile; append again")

        # Text that happens to look like numbers this time is still text, and may be wider.
        dtypes = {
            column.name: "U" if column.dtype[1] == "U" else column.dtype
            for column in manifest.columns
            if not column.shape
        }
        return await self._make(
            name, source_of(data, header, dtypes), wanted, scene, old, manifest.store, is_same, progress
        )

    async def rm(self, name: str, version: int | None = None, *, keep: int = 0) -> None:
        """Remove a version, all but the newest `keep`, or the whole dataset. Files go when no version needs them and
        some time has passed.

        Raises `DatasetNotFound`. When the version that readers get is removed, they get the newest of the others.
        """
        if type(keep) is not int or keep < 0 or (keep and version is not None):
            raise BadRows("keep", f"expected how many of the newest versions stay, and no version, got {keep!r}")
        await self._editions.remove(expect_name(name), version, keep)

    async def _make(
        self,
        name: str,
        source: Any,
        wanted: Wanted,
        scene: Scene,
        old: Dataset | None,
        store: str | None,
        expect: Callable[[Draft], None],
        progress: Callable[[Progress], None] | None,
    ) -> Dataset:
        with tempfile.TemporaryDirectory(prefix="zkd-") as temporary:
            directory = Path(temporary)
            async with (
                partitioned(source, wanted, scene, directory, progress) as partition,
                self._editions.drafting(name) as draft,
            ):
                expect(draft)
                scene = await copies.look(self._client, name)  # reading the rows may have taken long
                if store is None:
                    expect_keepers(name, scene, wanted.replicas, wanted.quorum)
                token = await self._plane.token()
                merging = None if old is None else Merging(old)
                sending = Sending(
                    name,
                    partition,
                    wanted.replicas,
                    wanted.quorum,
                    scene,
                    self._plane.http,
                    token,
                    directory,
                    progress,
                    None if store is None else self._plane.remote(store),
                    here=self._client.nodes,
                    merging=merging,
                )
                sending.tell()
                refs = await sending.run()
                if old is not None and merging is not None:
                    pairs = enumerate(zip(old.segments, refs, strict=True))
                    refs = tuple(before[: merging.kept(part)] + added for part, (before, added) in pairs)
                manifest = _manifest(draft, wanted, partition, refs, old, store)
                await self._editions.publish(draft, manifest, refs)
        return Dataset(self._plane, manifest, refs)


def _manifest(
    draft: Draft, wanted: Wanted, partition: Partition, refs: Parts, old: Dataset | None, store: str | None
) -> Manifest:
    return Manifest(
        name=draft.name,
        version=draft.version,
        parts=partition.parts,
        replicas=wanted.replicas,
        columns=partition.columns,
        rows=wanted.first_row + partition.rows,
        size=sum(ref.size for part in refs for ref in part),
        chunks=chunks_listed(refs),
        key=wanted.key,
        label=wanted.label,
        parent=None if old is None else old.version,
        quorum=wanted.quorum if wanted.quorum < quorum(wanted.replicas) else None,
        store=store,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=whoami(),
    )


def chunks_listed(refs: Parts) -> list[str]:
    """The digests of the chunks that list these segments."""
    return [chunk_digest(codec.encode(refs[start : start + CHUNK_PARTS])) for start in range(0, len(refs), CHUNK_PARTS)]


def _expect_counts(parts: int | None, replicas: int | None) -> None:
    if parts is not None and (type(parts) is not int or not 1 <= parts <= PARTS_MAX or parts & (parts - 1)):
        raise BadRows("parts", f"expected a power of two from 1 to {PARTS_MAX}, got {parts!r}")
    if replicas is not None and (type(replicas) is not int or not 1 <= replicas <= REPLICAS_MAX):
        raise BadRows("replicas", f"expected 1 to {REPLICAS_MAX}, got {replicas!r}")


def _expect_store(url: str, replicas: int | None) -> str:
    from zkd.net.places import check_url

    if replicas is not None:
        raise BadRows("replicas", "expected none with `store`, which keeps as many copies as it does")
    try:
        return check_url(url)
    except BadRecord as error:
        raise BadRows("store", error.expected) from None


def quorum_on(scene: Scene, replicas: int, *, is_asked_for: bool) -> int:
    """How many copies have to be durable: one will do on a single node, unless somebody asked for so many."""
    return 1 if not is_asked_for and len(scene.ring.keepers) <= 1 else quorum(replicas)


def expect_keepers(name: str, scene: Scene, replicas: int, wanted: int | None = None) -> None:
    wanted = quorum(replicas) if wanted is None else wanted
    serving = sum(scene.address(keeper.node) is not None for keeper in scene.keepers)
    if serving < wanted:
        raise DataUnavailable(
            f"{name}: {replicas} replicas need {wanted} nodes that keep data, and there "
            f"{'is' if serving == 1 else 'are'} {serving}: `zkd get nodes` says who is here"
        )
