"""`client.models`: registered models, their versions, and the aliases under which they are served.

    await client.models.push("iris", make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y))
    await client.models.register(job, "iris")
    await client.models.alias("iris@live", 2)
    model = await client.models.load("iris@live")
    await client.models.rollback("iris@live")

A version is there when its file is durable on its nodes, and then never changes. Models are named NAME (the newest
version), NAME@VERSION or NAME@ALIAS everywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from zkd.client.desired import whoami
from zkd.client.model_files import ModelFiles
from zkd.client.model_tree import ModelTree
from zkd.core import foreign, registry
from zkd.core.registry import Hand, ModelRef, Registered
from zkd.errors import BadModel, BadRecord, DataDamaged, ModelNotFound
from zkd.registry import FILE_BYTES_MAX, Alias, Canary, CanaryLimits, Lineage, ModelFile, ModelVersion

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.client.plane import Plane
    from zkd.client.training_job import TrainingJob
    from zkd.client.trials import Trial
    from zkd.models.cards import Difference
    from zkd.models.from_sklearn import Features
    from zkd.models.survey import Label
    from zkd.models.trained import Trained
    from zkd.paths import NodeId


class ModelEntry(NamedTuple):
    """A version of a model, as the tree has it."""

    name: str
    number: int
    version: ModelVersion

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


class Models:
    def __init__(self, client: Client, box: DropBox, plane: Plane) -> None:
        self._client = client
        self._plane = plane
        self._tree = ModelTree(box)
        self._files = ModelFiles(client, plane)

    # --- Looking ------------------------------------------------------------------------------------------

    async def list(self) -> dict[str, Registered]:
        """The models that have versions, with these and their aliases. One that cannot be believed is left out."""
        found = {}
        for name in await self._tree.names():
            try:
                model = await self._tree.read(name)
            except (ModelNotFound, DataDamaged):
                continue
            if model.versions or model.refused:
                found[name] = model
        return found

    async def describe(self, name: str) -> Registered:
        """All versions and aliases of a model. Raises `ModelNotFound`."""
        model = await self._tree.read(_ref(name).name)
        if not (model.versions or model.refused):
            raise ModelNotFound(f"there is no model {name} below {self._client.paths.root}")
        return model

    async def get(self, model: str) -> ModelEntry:
        """The version that this names now: NAME, NAME@VERSION, NAME@ALIAS. Raises `ModelNotFound`."""
        ref = _ref(model)
        found = await self._tree.read(ref.name)
        number = found.number(ref)
        return ModelEntry(ref.name, number, found.versions[number])

    async def pull(self, model: str) -> bytes:
        """The file of a version, whose digest was checked. Raises `ModelNotFound`, `DataUnavailable`."""
        return await self._files.fetch((await self.get(model)).version.file)

    async def load(self, model: str) -> Trained:
        """A version, to be looked at and to predict with here. Raises as `pull`, and `DataDamaged` if its record lies
        about the file."""
        return await self._load(await self.get(model))

    async def _load(self, entry: ModelEntry) -> Trained:
        from zkd.models.cards import refuse_another

        data = await self._files.fetch(entry.version.file)
        try:
            trained = await asyncio.to_thread(_read, data)
            refuse_another(entry.version, trained)
        except (BadModel, BadRecord) as error:
            raise DataDamaged(f"{entry}: {error}") from None
        return trained

    async def diff(self, before: str, after: str) -> Difference:
        """What is not the same in two versions, of one model or of two. Raises as `load`."""
        from zkd.models.cards import difference

        old, new = await self.get(before), await self.get(after)
        return difference(old.version, await self._load(old), new.version, await self._load(new))

    async def holders(self, model: str) -> dict[NodeId, bool]:
        """Of the nodes that are here: whether each has the file of this version."""
        return await self._files.holders((await self.get(model)).version.file)

    # --- Making -------------------------------------------------------------------------------------------

    async def push(
        self,
        name: str,
        model: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
        features: Features | None = None,
        classes: Sequence[Label] | None = None,
        target: str = "",
        lineage: Lineage | None = None,
    ) -> ModelEntry:
        """Make the next version of a model of this: what a training job ended with, as a value, as bytes or as a file,
        a fitted model of scikit-learn (`zkd.models.from_sklearn` says which), or a file ``*.onnx``
        (`zkd.models.from_onnx`). `features` and `target` are for the last two, `classes` for the last.

        `metrics` are finite numbers by name; by default the losses of its training. Returns when the file is durable
        on its nodes and the version can be seen. Raises `BadModel`, `DataUnavailable`; nothing is to be seen then.
        """
        expect_name(name)
        data, trained, source = await asyncio.to_thread(file_of, model, features, target, classes)
        file = ModelFile((await asyncio.to_thread(blake3, data)).hexdigest(), len(data))
        return await self._publish(name, data, trained, file, lineage or Lineage(source=source), metrics, note)

    async def register(
        self, job: TrainingJob | str, name: str, *, metrics: Mapping[str, float] | None = None, note: str = ""
    ) -> ModelEntry:
        """Make the next version of a model of what a training job ends with, waiting for its end. Raises `JobFailed`,
        `JobNotFound`, and as `push`."""
        expect_name(name)
        if isinstance(job, str):
            job = await self._client.jobs.get(job)
        data = await job.model_file()
        state = await job.wait()
        try:
            trained = await asyncio.to_thread(_read, data)
        except BadRecord as error:
            raise BadModel(f"what {job.id} ended with is no model: {error}") from None
        file = ModelFile((await asyncio.to_thread(blake3, data)).hexdigest(), len(data))
        lineage = Lineage(dataset=state.dataset, job=job.id, terms=state.terms)
        return await self._publish(name, data, trained, file, lineage, metrics, note)

    async def _publish(
        self,
        name: str,
        data: bytes,
        trained: Trained,
        file: ModelFile,
        lineage: Lineage,
        metrics: Mapping[str, float] | None,
        note: str,
    ) -> ModelEntry:
        from zkd.models.cards import card, refuse_unsound

        refuse_unsound(trained)
        version = card(
            trained, file, lineage=lineage, metrics=metrics, created_ms=_now_ms(), by=whoami()[:256], note=note
        )
        try:
            registry.checked_version(version)
        except BadRecord as error:
            raise BadModel(str(error)) from None
        await self._files.send(file, data)
        return ModelEntry(name, await self._tree.publish(name, version), version)

    # --- Aliases ------------------------------------------------------------------------------------------

    async def alias(self, alias: str, version: int | None = None, *, why: str = "") -> Alias:
        """Have NAME@ALIAS mean this version, by default the newest; a canary ends. Every node follows at once."""
        ref = _alias_ref(alias)
        hand = _hand(why)

        def edit(model: Registered, now: Alias | None) -> Alias:
            return registry.moved(now, model.number(ModelRef(ref.name, version)), hand)

        return await self._changed(ref, edit)

    async def canary(
        self,
        alias: str,
        version: int | None = None,
        *,
        percent: float = 10.0,
        shadow: bool = False,
        error_share: float | None = None,
        p99_ms: float | None = None,
        drift: float | None = None,
        why: str = "",
    ) -> Alias:
        """Have another version, by default the newest, answer `percent` of the requests to NAME@ALIAS, or look on as
        a `shadow`. Beyond any of the limits nodes take it back. Raises `ModelInUse` if it is what is served already."""
        ref = _alias_ref(alias)
        hand = _hand(why)

        def edit(model: Registered, now: Alias | None) -> Alias:
            number = model.number(ModelRef(ref.name, version))
            limits = CanaryLimits(error_share, p99_ms, drift)
            wanted = Canary(version=number, percent=percent, shadow=shadow, since_ms=hand.at_ms, limits=limits)
            return registry.with_canary(_there(ref, now), wanted, hand)

        return await self._changed(ref, edit)

    async def trials(self, alias: str) -> dict[NodeId, Trial | None]:
        """How the canary of NAME@ALIAS does on each node. Raises `ModelNotFound`."""
        from zkd.client.trials import trials

        ref = _alias_ref(alias)
        (await self.describe(ref.name)).number(ref)
        return await trials(self._client, self._plane, ref)

    async def promote(self, alias: str, *, why: str = "") -> Alias:
        """Have NAME@ALIAS mean what is its canary. Raises `ModelInUse` if it has none."""
        ref, hand = _alias_ref(alias), _hand(why)
        return await self._changed(ref, lambda _, now: registry.promoted(_there(ref, now), hand))

    async def rollback(self, alias: str, *, why: str = "") -> Alias:
        """Take the canary of NAME@ALIAS back; without one, have it mean what it meant before. Twice goes back twice.

        Raises `ModelNotFound` if there is nothing to go back to.
        """
        ref, hand = _alias_ref(alias), _hand(why)
        return await self._changed(ref, lambda model, now: registry.rolled_back(_there(ref, now), model.versions, hand))

    async def _changed(self, ref: ModelRef, edit: Any) -> Alias:
        assert ref.alias is not None
        try:
            changed = await self._tree.change(ref.name, ref.alias, edit)
        except BadRecord as error:
            raise BadModel(str(error)) from None
        assert changed is not None
        return changed

    # --- Removing -----------------------------------------------------------------------------------------

    async def rm(self, model: str) -> None:
        """Remove NAME with all versions and aliases, NAME@VERSION, or NAME@ALIAS (the alias alone).

        Files go a minute later, and numbers of versions are not given again. Raises `ModelNotFound`, `ModelInUse` if
        an alias points to the version.
        """
        ref = _ref(model)
        if ref.alias is None:
            await self._tree.remove(ref.name, ref.version)
            return
        was_there = False

        def edit(_: Registered, now: Alias | None) -> None:
            nonlocal was_there
            was_there = was_there or now is not None

        await self._tree.change(ref.name, ref.alias, edit)
        if not was_there:
            raise ModelNotFound(f"model {ref.name} has no alias {ref.alias}")


def expect_name(name: str) -> str:
    if not isinstance(name, str) or not registry.is_model_name(name):
        raise BadModel(f"name: expected {registry.NAME_RULE}, got {str(name)[:150]!r}")
    return name


def _ref(text: str) -> ModelRef:
    try:
        return registry.split_ref(text)
    except BadRecord as error:
        raise BadModel(f"model: {error.expected}") from None


def _alias_ref(text: str) -> ModelRef:
    ref = _ref(text)
    if ref.alias is None:
        raise BadModel(f"alias: expected NAME@ALIAS, the alias of {registry.ALIAS_RULE}, got {text[:200]!r}")
    return ref


def _there(ref: ModelRef, alias: Alias | None) -> Alias:
    if alias is None:
        raise ModelNotFound(f"model {ref.name} has no alias {ref.alias}")
    return alias


def _hand(why: str) -> Hand:
    return Hand(whoami()[:256], _now_ms(), why)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _read(data: bytes) -> Trained:
    """The model in these bytes. Raises `BadModel` for another format, `BadRecord` for a damaged one."""
    from zkd.models.trained import Trained

    why = foreign.of_bytes(data[: foreign.HEAD_BYTES], len(data))
    if why is not None:
        raise BadModel(why)
    return Trained.read(data)


def file_of(
    model: Any, features: Features | None = None, target: str = "", classes: Sequence[Label] | None = None
) -> tuple[bytes, Trained, str | None]:
    """The file, what is in it, and where it comes from."""
    from zkd.models.from_sklearn import is_of_sklearn, trained_of
    from zkd.models.trained import Trained

    if isinstance(model, Trained):
        return model.write(), model, None
    if isinstance(model, str | PathLike) and Path(model).suffix.lower() == ".onnx":
        from zkd.models.from_onnx import trained_of_onnx

        trained = trained_of_onnx(_read_path(Path(model)), features=features, classes=classes, target=target)
        return trained.write(), trained, trained.summary.notes[0]
    if classes is not None:
        raise BadModel("classes are for ONNX files: what else there is has its own")
    if is_of_sklearn(model):
        trained = trained_of(model, features=features, target=target)
        return trained.write(), trained, trained.summary.notes[0]
    if features is not None or target:
        raise BadModel("features and target are for models of scikit-learn and ONNX: a file of zkd has its own")
    if isinstance(model, str | PathLike):
        data = _of_path(Path(model))
    elif isinstance(model, bytes | bytearray | memoryview):
        data = bytes(model)
    else:
        kind = type(model)
        raise BadModel(
            "expected a trained model, its file, or a fitted model of scikit-learn, got "
            f"{kind.__module__}.{kind.__name__}"
        )
    try:
        return data, _read(data), None
    except BadRecord as error:
        raise BadModel(str(error)) from None


def _of_path(path: Path) -> bytes:
    why = foreign.of_name(path.name)
    if why is not None:
        raise BadModel(why)
    with path.open("rb") as file:
        head = file.read(foreign.HEAD_BYTES)
        size = path.stat().st_size
        why = foreign.of_bytes(head, size)
        if why is not None:
            raise BadModel(f"{path.name}: {why}")
    return _read_path(path)


def _read_path(path: Path) -> bytes:
    size = path.stat().st_size
    if size > FILE_BYTES_MAX:
        raise BadModel(f"{path.name}: expected at most {FILE_BYTES_MAX} bytes, got {size}")
    return path.read_bytes()
