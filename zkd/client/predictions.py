"""`client.predict` and `client.evaluate`: a model on a dataset, each part on a node that holds it.

    out = await client.predict("iris@live", "flowers", out="flowers-iris")     a dataset: same parts, keys, row numbers
    told = await client.evaluate("iris@live", "flowers")                       how good it is, as numbers

Neither rows nor predictions pass through this program. A worker writes what it computed of a part as a segment on its
node; that node takes it in, the homes of the part bring it to themselves, and when each part has its quorum of durable
copies the version is published as `datasets.put` does. A part whose node went meanwhile is computed anew: the same
model and the same rows give the same segment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from blake3 import blake3

from zkd.client import copies
from zkd.client.dataset import Dataset
from zkd.client.datasets import REPLICAS, chunks_listed, expect_keepers, quorum_on
from zkd.client.desired import whoami
from zkd.client.editions import Editions, expect_name
from zkd.client.quorums import Quorums, quorum
from zkd.client.sending import Progress
from zkd.client.training_job import TrainingJob
from zkd.core.datasets import mark_of
from zkd.errors import (
    BadModel,
    BadRecord,
    BadRows,
    BadTraining,
    DataDamaged,
    DatasetExists,
    DataUnavailable,
    JobNotFound,
    ModelNotFound,
    TaskFailed,
    TaskRejected,
    ZooKeeperError,
)
from zkd.manifests import REPLICAS_MAX, Manifest, Origin, SegmentRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zkd.client.calls import Calls
    from zkd.client.client import Client
    from zkd.client.copies import Scene
    from zkd.client.dropbox import DropBox
    from zkd.client.editions import Draft
    from zkd.client.plane import Plane
    from zkd.client.uploads import Uploads
    from zkd.core.datasets import Parts
    from zkd.manifests import Column
    from zkd.models.trained import Trained
    from zkd.paths import NodeId

MODEL_COPIES = 3  # of the file while tasks ask for it
PARTS_A_SLOT = 3  # on their way at the same time: being computed, waiting, being copied
PARTS_AT_ONCE_MIN = 8
LOOK_S = 2.0  # between looks whether a node is still here that something is brought from
TRIES = 6  # of a part whose node goes with what it made
COLUMNS_MAX = 1000  # that a task names; beyond, it is given all that there are
FILE_ENDING = ".safetensors"


class Loaded(NamedTuple):
    """A model's file and what is in it."""

    name: str  # for people: NAME@VERSION, a job, a file
    data: bytes
    digest: str
    trained: Trained


class Predictions:
    def __init__(self, client: Client, box: DropBox, plane: Plane, calls: Calls, uploads: Uploads) -> None:
        self._client = client
        self._editions = Editions(box)
        self._plane = plane
        self._calls = calls.options(ephemeral=True)  # nobody else can use what they make
        self._uploads = uploads

    async def predict(
        self,
        model: Any,
        dataset: str | Dataset,
        *,
        out: str,
        columns: Sequence[str] | None = None,
        missing: Literal["refuse", "propagate"] = "refuse",
        prefix: str = "",
        replicas: int | None = None,
        replace: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Dataset:
        """Make the dataset `out` of what a model says of a dataset: ``prediction``, ``probabilities``, ``score``.

        `model` is NAME, NAME@VERSION or NAME@ALIAS of a registered one, the id of a training job, the path of a file
        (with a ``/``, or ending in ``.safetensors``), or a model as a value. `columns` are those to be kept, by default
        all that the model gives, each named with the `prefix`; the key column of the dataset is kept, too. Rows with a
        missing feature are refused by their numbers, or `missing` has them "propagate" as NaN. `replicas` are by
        default those of the dataset.

        If `out` is what this would make already, it is given as it is; another dataset of this name is an error, unless
        `replace` makes a new version of it. Raises `ModelNotFound`, `DatasetNotFound`, `BadTraining` for columns that
        the model cannot take, `BadRows`, `DatasetExists`, `DataUnavailable`; nothing is to be seen then.
        """
        from zkd.models import outputs

        expect_name(out)
        _expect_options(missing, replicas)
        loaded = await self.load(model)
        source = await self._open(dataset)
        of = f"{source.name}@{source.version}"
        features = outputs.expect_columns(loaded.trained, source.columns, of)
        wanted = outputs.expect_names(loaded.trained, columns)
        key = source.manifest.key
        made = _expect_free(_described(loaded.trained, wanted, missing, prefix), source)
        origin = Origin(
            dataset=of, mark=mark_of(source.manifest), model=loaded.digest, name=loaded.name, missing=missing
        )
        there = await self._there(out, origin, made, replicas)
        if there is not None:
            return there
        if not replace and out in await self._editions.current():
            raise DatasetExists(f"there is another dataset {out} already: `replace` makes a new version of it")
        scene = await copies.look(self._client, out)
        is_asked_for = replicas is not None
        if replicas is None:
            replicas = source.manifest.replicas if source.manifest.store is None else REPLICAS
        needed = quorum_on(scene, replicas, is_asked_for=is_asked_for)
        expect_keepers(out, scene, replicas, needed)
        named = [*features, *([] if key is None else [key])]
        async with self._editions.drafting(out) as draft:
            if draft.current is not None and not replace:
                raise DatasetExists(f"somebody else made the dataset {out} meanwhile; nothing was changed")
            work = _Work(self._client, self._calls, self._plane, source, out, replicas, needed, scene, progress)
            work.columns = named if len(named) <= COLUMNS_MAX else []
            work.kwargs = {"digest": loaded.digest, "wanted": wanted, "missing": missing, "key": key, "prefix": prefix}
            work.send_model = lambda: self._uploads.send(loaded.data, MODEL_COPIES)
            refs = await work.run()
            manifest = _manifest(draft, source, made, refs, replicas, needed, origin)
            await self._editions.publish(draft, manifest, refs)
        return Dataset(self._plane, manifest, refs)

    async def evaluate(self, model: Any, dataset: str | Dataset) -> dict[str, Any]:
        """How good a model is on a dataset that has its target: numbers by name (`zkd.models.evaluation`).

        Counts of rows; of classes accuracy, log-loss, Brier score, the area under the ROC curve with a bound of its
        error, calibration, the confusion matrix; of numbers RMSE, MAE, bias, R2 and the deviance of counts; for each
        feature how far it has drifted from the training rows. Sums travel, rows stay. Raises as `predict`.
        """
        from zkd.models import evaluation, outputs

        loaded = await self.load(model)
        source = await self._open(dataset)
        of = f"{source.name}@{source.version}"
        features = outputs.expect_columns(loaded.trained, source.columns, of)
        target = loaded.trained.target
        column = next((each for each in source.columns if each.name == target), None)
        if column is None:
            raise BadTraining(f"target: expected the column {target!r}, too, which {of} has not")
        if column.shape:
            raise BadTraining(f"target: expected one value a row in {target!r}, got the shape {column.shape}")
        named = [*features, target]
        total = await self._client.map_parts(
            "evaluate_part",
            source,
            columns=named if len(named) <= COLUMNS_MAX else None,
            combine="combine_evaluations",
            model=await self._uploads.send(loaded.data, MODEL_COPIES),
            digest=loaded.digest,
        )
        return evaluation.report(loaded.trained, total)

    # --- What is asked for ----------------------------------------------------------------------------------

    async def load(self, model: Any) -> Loaded:
        """The file that this means now. Raises `ModelNotFound`, `BadModel`, `DataUnavailable`, `DataDamaged`."""
        from zkd.client.model import Model
        from zkd.client.models import file_of

        if isinstance(model, str) and "/" not in model and not model.endswith(FILE_ENDING):
            return await self._named(model)
        if isinstance(model, TrainingJob):
            return await asyncio.to_thread(_loaded, model.id, await model.model_file(), None)
        if isinstance(model, Model):
            model = model.trained
        name = str(model)[:200] if isinstance(model, str | PathLike) else ""
        data, trained, _ = await asyncio.to_thread(file_of, model)
        return await asyncio.to_thread(_loaded, name, data, trained)

    async def _named(self, model: str) -> Loaded:
        from zkd.models.cards import refuse_another

        try:
            entry = await self._client.models.get(model)
        except (ModelNotFound, BadModel):
            if "@" in model:
                raise
            try:
                job = await self._client.jobs.get(model)
            except JobNotFound:
                raise ModelNotFound(
                    f"there is neither a registered model nor a training job {model!r} below "
                    f"{self._client.paths.root}; a file is named by its path, such as ./{model}"
                ) from None
            return await asyncio.to_thread(_loaded, model, await job.model_file(), None)
        data = await self._client.models.pull(f"{entry.name}@{entry.number}")
        loaded = await asyncio.to_thread(_loaded, str(entry), data, None)
        try:
            refuse_another(entry.version, loaded.trained)
        except BadRecord as error:
            raise DataDamaged(f"{entry}: {error}") from None
        return loaded

    async def _open(self, dataset: str | Dataset) -> Dataset:
        return await self._client.datasets.open(dataset) if isinstance(dataset, str) else dataset

    async def _there(self, out: str, origin: Origin, made: list[Column], replicas: int | None) -> Dataset | None:
        """What stands under this name, if it is what would be made."""
        if out not in await self._editions.current():
            return None
        manifest = await self._editions.manifest(out)
        is_same = manifest.origin is not None and (
            msgspec.structs.replace(manifest.origin, name="") == msgspec.structs.replace(origin, name="")
        )
        if not is_same or manifest.columns != made or replicas not in (None, manifest.replicas):
            return None
        return Dataset(self._plane, manifest, await self._editions.parts(manifest))


class _Work:
    """One dataset in the making."""

    def __init__(
        self,
        client: Client,
        calls: Calls,
        plane: Plane,
        source: Dataset,
        out: str,
        replicas: int,
        needed: int,
        scene: Scene,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        self.columns: list[str] = []  # that a task is given; none: one object of all
        self.kwargs: Mapping[str, Any] = {}
        self.send_model: Callable[[], Any] = lambda: None
        self._client = client
        self._calls = calls
        self._plane = plane
        self._source = source
        self._of = f"{source.name}@{source.version}"
        self._out = out
        self._quorums = Quorums(out, source.parts, replicas, scene, client.nodes, needed)
        self._addresses = {name: node.address for name, node in scene.nodes.items()}
        self._tell = tell
        self._parts_done = self._bytes_done = 0
        self._model: Any = None
        self._sending_model = asyncio.Lock()

    async def run(self) -> Parts:
        """All parts, each with its quorum; their segments."""
        source = self._source
        refs: list[tuple[SegmentRef, ...]] = [()] * source.parts
        self._model = await self.send_model()
        turns = asyncio.Semaphore(max(PARTS_AT_ONCE_MIN, PARTS_A_SLOT * await self._client.slots()))

        async def one(part: int) -> None:
            try:
                refs[part] = (await self._part(part),)
            finally:
                turns.release()

        self._told()
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in range(source.parts):
                    if source.segments[part]:
                        await turns.acquire()
                        tasks.create_task(one(part))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return tuple(refs)

    def _told(self) -> None:
        if self._tell is not None:
            filled = sum(map(bool, self._source.segments))
            self._tell(Progress(self._source.rows, filled, self._parts_done, self._bytes_done))

    async def _part(self, part: int) -> SegmentRef:
        faults: list[str] = []
        for _ in range(TRIES):
            model = self._model
            try:
                value, node = await self._calls.on_part(
                    "predict_part", self._of, part, columns=self.columns, model=model, **self.kwargs
                )
            except TaskRejected as error:
                raise _explained(error) from None
            except TaskFailed as error:
                if error.kind != "ResultLost":
                    raise
                faults.append(str(error))
                await self._send_model_again(model)
                continue
            try:
                ref = self._ref(part, value)
                await self._keep(part, node, ref)
            except _Lost as error:
                faults.append(str(error))
                continue
            self._parts_done += 1
            self._bytes_done += ref.size
            self._told()
            return ref
        raise DataUnavailable(f"{self._out}: part {part} was computed {TRIES} times and lost: {'; '.join(faults[-3:])}")

    def _ref(self, part: int, value: Any) -> SegmentRef:
        rows = sum(each.rows for each in self._source.segments[part])
        try:
            ref = msgspec.convert(value["segment"], SegmentRef)
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise DataDamaged(f"{self._of}: part {part} gave no segment: {error}") from None
        if ref.rows != rows:
            raise DataDamaged(f"{self._of}: part {part} has {rows} rows, and {ref.rows} predictions")
        return ref

    async def _keep(self, part: int, maker: NodeId | None, ref: SegmentRef) -> None:
        """Have the segment on the homes of the part. `_Lost` if it cannot be had from the node that made it."""
        from zkd.net.bringing import SourceLost, bring

        http, token = self._plane.http, await self._plane.token()
        address = await self._address(maker)
        if maker is None or address is None:
            raise _Lost(f"{maker} is gone")
        try:
            await self._while_here(maker, bring(http, address, token, ref, []))
        except DataUnavailable as error:
            raise _Lost(f"{maker}: {error}") from None

        async def copy(node: NodeId) -> str | None:
            if node == maker:
                return None
            its = await self._address(node)
            if its is None:
                return "it serves no data"
            try:
                await self._while_here(maker, bring(http, its, token, ref, [maker]))
            except SourceLost:
                raise
            except DataUnavailable as error:
                return str(error)
            return None

        try:
            await self._quorums.reach(part, ref.size, copy)
        except ExceptionGroup as group:  # of those who bring it; `except*` would wrap what is raised here, too
            lost = group.subgroup(SourceLost)
            if lost is None:
                raise
            raise _Lost(f"{maker} has lost it: {lost.exceptions[0]}") from None

    async def _while_here(self, maker: NodeId, work: Coroutine[Any, Any, None]) -> None:
        """What is brought from this node, unless it goes meanwhile: one that is frozen answers nobody.

        Raises what the work raises, and `SourceLost`.
        """
        from zkd.net.bringing import SourceLost

        async def look_on() -> None:
            while True:
                await asyncio.sleep(LOOK_S)
                try:
                    here = await self._client.nodes()
                except ZooKeeperError:
                    continue  # nobody knows better
                if maker not in here:
                    raise SourceLost(f"{maker} is gone")

        try:
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(look_on())
                await work
                looking.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _address(self, node: NodeId | None) -> str | None:
        if node is not None and self._addresses.get(node) is None:  # it came after we looked
            self._addresses = {name: each.address for name, each in (await self._client.nodes()).items()}
        return None if node is None else self._addresses.get(node)

    async def _send_model_again(self, known: Any) -> None:
        async with self._sending_model:
            if self._model is known:
                self._model = await self.send_model()


class _Lost(Exception):  # a signal within this module
    """What a node made has gone with it."""


def _loaded(name: str, data: bytes, trained: Trained | None) -> Loaded:
    from zkd.models.trained import Trained

    digest = blake3(data).hexdigest()
    try:
        return Loaded(name or digest[:12], data, digest, Trained.read(data) if trained is None else trained)
    except BadRecord as error:
        raise BadModel(f"{name}: {error}") from None


def _described(trained: Trained, wanted: Sequence[str], missing: Any, prefix: str) -> list[Column]:
    """What manifests say of the columns that a model gives."""
    import numpy as np

    from zkd.models.outputs import outputs_of
    from zkd.tables.columns import described

    none = {name: np.empty((0, width) if width else 0) for name, width in trained.features}
    given = outputs_of(trained, none, wanted, missing=missing)
    return [described(f"{prefix}{name}", array) for name, array in given.items()]


def _expect_free(made: list[Column], source: Dataset) -> list[Column]:
    """These columns behind the key, or `BadRows`."""
    key = source.manifest.key
    if key in {column.name for column in made}:
        raise BadRows(
            "key", f"the key column of {source.name} is called {key!r}, as one of the predictions: give a prefix"
        )
    long = next((column.name for column in made if len(column.name) > 128), None)
    if long is not None:
        raise BadRows("prefix", f"expected names of at most 128 characters, got {long[:150]!r}")
    return [*(column for column in source.columns if column.name == key), *made]


def _expect_options(missing: object, replicas: object) -> None:
    if missing not in ("refuse", "propagate"):
        raise BadRows("missing", f"expected refuse or propagate, got {missing!r}")
    if replicas is not None and (type(replicas) is not int or not 1 <= replicas <= REPLICAS_MAX):
        raise BadRows("replicas", f"expected 1 to {REPLICAS_MAX}, got {replicas!r}")


def _explained(error: TaskRejected) -> Exception:
    """Rows that a model refuses are an error about rows, whoever found them."""
    _, where, what = str(error).partition("$.rows: ")
    return BadRows("rows", what.rpartition(" [")[0]) if where else error


def _manifest(
    draft: Draft, source: Dataset, columns: list[Column], refs: Parts, replicas: int, needed: int, origin: Origin
) -> Manifest:
    return Manifest(
        name=draft.name,
        version=draft.version,
        parts=source.parts,
        replicas=replicas,
        columns=columns,
        rows=source.rows,
        size=sum(ref.size for part in refs for ref in part),
        chunks=chunks_listed(refs),
        key=source.manifest.key,
        quorum=needed if needed < quorum(replicas) else None,
        origin=origin,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=whoami(),
    )
