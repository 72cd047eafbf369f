"""`client.predictor`: answers of a served model within a deadline, from whichever node gives one first.

    async with client.predictor("iris@live", deadline_s=0.2) as predictor:
        labels = await predictor(X)                                     numpy in, numpy out
        answer = await predictor.ask(X, want=["probabilities"])         with version, node, who was asked
        async for answer in predictor.many(batches): ...                in order, some at the same time

Every node can answer, and every answer to the same rows by the same version has the same bits, so it does no harm to
ask twice. `zkd.client.prediction_race` says when that is done, `zkd.core.choice` which node is asked.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Self

from zkd.client.answer_cache import AnswerCache
from zkd.client.serving_view import ServingView
from zkd.core import registry
from zkd.core.choice import Choice
from zkd.errors import BadModel, BadRecord, BadRows, ModelNotFound, NotPredicted

if TYPE_CHECKING:
    from types import TracebackType

    from zkd.client.client import Client
    from zkd.client.prediction_race import Race
    from zkd.client.prediction_wire import Answer, Array
    from zkd.core.registry import ModelRef

DEADLINE_S = 1.0
AT_ONCE = 128  # requests of one predictor on their way; more wait here, within their deadlines
MANY_AT_ONCE = 16
SOON_S = 0.02  # until nodes are asked again for what was registered a moment ago
WANTS = ("prediction", "probabilities", "score", "attributions")
COMBINES = ("mean", "weighted", "vote")


class Predictor:
    """Made by `Client.predictor`; used within its ``async with`` block, by any number of tasks at once."""

    def __init__(
        self,
        client: Client,
        model: str | Sequence[str],
        *,
        deadline_s: float = DEADLINE_S,
        hedge: bool = True,
        want: Sequence[str] | None = None,
        missing: Literal["refuse", "propagate"] = "refuse",
        cache_bytes: int = 0,
        combine: Literal["mean", "weighted", "vote"] | None = None,
        weights: Sequence[float] | None = None,
        quorum: int | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """See `Client.predictor`. Raises `BadModel`, `BadRows`."""
        ref: ModelRef | None = None
        if isinstance(model, str):
            if (combine, weights, quorum) != (None, None, None):
                raise BadModel("combine, weights and quorum are of several models: expected a list of them")
            ref = _ref(model)
            self._refs = [ref]
            self._path, fields = f"/v1/models/{ref}/predict", {}
        else:
            self._refs = [_ref(each) for each in model]
            self._path, fields = "/v1/ensembles/predict", _ensemble(model, combine, weights, quorum)
        if missing not in ("refuse", "propagate"):
            raise BadRows("missing", f"expected refuse or propagate, got {missing!r}")
        self._fields: Mapping[str, Any] = {**fields, "missing": missing}
        self._what = model if isinstance(model, str) else f"the ensemble of {', '.join(model)}"
        self._want = None if want is None else _expect_want(want)
        self._deadline_s = _expect_deadline(deadline_s)
        self._is_hedging = hedge
        self._client = client
        self._turns = asyncio.Semaphore(at_once)
        self._choice = Choice(Random())
        self._cache = AnswerCache(cache_bytes) if cache_bytes > 0 and ref is not None else None
        self._view = ServingView(client, None if self._cache is None else ref, self._on_change)
        self._races: set[Race] = set()
        self._many: set[asyncio.Task[Answer | Exception]] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        from zkd.client.prediction_race import Lane
        from zkd.net.fetch import session

        async with AsyncExitStack() as stack:
            http = session(self._client.data_tls, connections=0)  # `at_once` bounds them
            stack.push_async_callback(http.close)
            await stack.enter_async_context(self._view.following())
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._hang_up)
            self._lane = Lane(self._what, self._path, http, self._view, self._choice, self._is_hedging)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # --- Asking ---------------------------------------------------------------------------------------------

    async def __call__(self, rows: Any, *, key: str | None = None, deadline_s: float | None = None) -> Array:
        """The prediction for each row: its label as written, or a number. Otherwise as `ask`."""
        answer = await self.ask(rows, want=["prediction"], key=key, deadline_s=deadline_s)
        assert answer.prediction is not None, "it was asked for, so it is there"
        return answer.prediction

    async def ask(
        self, rows: Any, *, want: Sequence[str] | None = None, key: str | None = None, deadline_s: float | None = None
    ) -> Answer:
        """What the model says of these rows: columns by name, a DataFrame, rows x features, objects, or one object.

        `want` are of "prediction", "probabilities", "score", "attributions"; by default those of the predictor, else
        the prediction, and probabilities of classes. Requests with the same `key` go to the same version while there
        is a canary. Raises `BadRows` for what the model cannot take, `ModelNotFound`, and `NotPredicted`.
        """
        from zkd.client.prediction_wire import Question

        began = asyncio.get_running_loop().time()
        wanted = self._want if want is None else _expect_want(want)
        within_s = self._deadline_s if deadline_s is None else _expect_deadline(deadline_s)
        fields = self._fields if wanted is None else {**self._fields, "want": wanted}
        # All nodes that are asked get the same key, so that the same version answers, whoever does.
        question = Question(rows, fields, secrets.token_hex(8) if key is None else key, is_text="members" in fields)
        if self._cache is None:
            return await self._asked(question, wanted, began, within_s)
        digest = question.digest()
        remembered = self._cache.find(digest, self._view.version)
        if remembered is not None:
            took_s = asyncio.get_running_loop().time() - began
            return replace(remembered, asked=(), seconds=took_s, is_remembered=True)
        answer = await self._asked(question, wanted, began, within_s)
        if not answer.is_canary:
            self._cache.keep(digest, self._view.version, answer)
        return answer

    async def _asked(self, question: Any, wanted: Sequence[str] | None, began: float, within_s: float) -> Answer:
        from zkd.client.prediction_race import Race

        give_up = began + within_s
        race = Race(self._lane, question, began, give_up)
        try:
            async with asyncio.timeout_at(give_up), self._turns:
                while True:
                    self._races.add(race)
                    try:
                        answer = await race.run()
                        break
                    except ModelNotFound:
                        await self._expect_registered()
                    finally:
                        self._races.discard(race)
                    await asyncio.sleep(SOON_S)
                    race = Race(self._lane, question, began, give_up)
        except TimeoutError:
            words = f"{self._what}: no answer within {within_s:g} s; {race.told()}"
            raise NotPredicted("deadline", words) from None
        if answer.rows != question.rows or any(getattr(answer, name) is None for name in wanted or ()):
            wants = "" if wanted is None else f" with {', '.join(wanted)}"
            words = f"expected an answer{wants} about {question.rows} rows, got one about {answer.rows}"
            raise NotPredicted("failed", f"{self._what}: {answer.node}: {words}")
        return replace(answer, asked=tuple(race.asked), seconds=asyncio.get_running_loop().time() - began)

    async def _expect_registered(self) -> None:
        """Raises `ModelNotFound` unless the tree has what nodes do not know: then they will, soon."""
        for ref in self._refs:
            await self._client.models.get(str(ref))

    async def many(
        self, batches: Iterable[Any] | AsyncIterable[Any], *, at_once: int = MANY_AT_ONCE, **options: Any
    ) -> AsyncIterator[Answer]:
        """The answer to each of these, in order, some asked at the same time; `options` are those of `ask`.

        The first that fails is raised when it is its turn.
        """
        source = aiter(batches) if isinstance(batches, AsyncIterable) else _each(batches)
        running: list[asyncio.Task[Answer | Exception]] = []
        is_more = True
        try:
            while is_more or running:
                while is_more and len(running) < at_once:
                    try:
                        rows = await anext(source)
                    except StopAsyncIteration:
                        is_more = False
                    else:
                        task = self._tasks.create_task(self._kept(rows, options))
                        self._many.add(task)
                        task.add_done_callback(self._many.discard)
                        running.append(task)
                if running:
                    answer = await running.pop(0)
                    if isinstance(answer, Exception):
                        raise answer
                    yield answer
        finally:
            for task in running:
                task.cancel()

    async def _kept(self, rows: Any, options: Mapping[str, Any]) -> Answer | Exception:
        """An error is for who waits for this answer, and ends nobody else's."""
        try:
            return await self.ask(rows, **options)
        except (BadRows, ModelNotFound, NotPredicted) as error:
            return error

    def _hang_up(self) -> None:
        """Whoever left `many` in the middle wants none of it."""
        for task in self._many:
            task.cancel()

    def _on_change(self) -> None:
        self._choice.keep(self._view.nodes.keys())
        for race in self._races:
            race.look(self._view.nodes)


# --- What may be asked for ------------------------------------------------------------------------------------


def _ref(text: str) -> ModelRef:
    try:
        return registry.split_ref(text)
    except BadRecord as error:
        raise BadModel(f"model: {error.expected}") from None


def _ensemble(
    members: Sequence[str], combine: str | None, weights: Sequence[float] | None, quorum: int | None
) -> dict[str, Any]:
    if not members or not all(isinstance(each, str) for each in members):
        raise BadModel(f"model: expected the name of one, or a list of names, got {str(members)[:200]!r}")
    combine = combine or ("mean" if weights is None else "weighted")
    if combine not in COMBINES:
        raise BadModel(f"combine: expected one of {', '.join(COMBINES)}, got {combine!r}")
    if (combine == "weighted") != (weights is not None) or len(weights or members) != len(members):
        got = "none" if weights is None else str(len(weights))
        raise BadModel(f"weights: expected one for each of {len(members)} members, for `weighted` alone, got {got}")
    if quorum is not None and not 1 <= quorum <= len(members):
        raise BadModel(f"quorum: expected 1 to {len(members)}, got {quorum!r}")
    fields: dict[str, Any] = {"members": [str(_ref(each)) for each in members], "combine": combine}
    if weights is not None:
        fields["weights"] = [float(weight) for weight in weights]
    if quorum is not None:
        fields["quorum"] = quorum
    return fields


def _expect_want(want: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(want))
    if not names or isinstance(want, str) or any(name not in WANTS for name in names):
        raise BadRows("want", f"expected a list of {', '.join(WANTS)}, got {want!r}")
    return names


def _expect_deadline(seconds: float) -> float:
    if not (seconds > 0 and math.isfinite(seconds)):
        raise BadRows("deadline_s", f"expected seconds, more than 0, got {seconds!r}")
    return seconds


async def _each(batches: Iterable[Any]) -> AsyncIterator[Any]:
    for batch in batches:
        yield batch
