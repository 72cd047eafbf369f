"""Rounds over nodes that fail, leave, join and dawdle end in the very weights of an undisturbed run."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.models.data import prepared
from zkd.core.asks import Home
from zkd.core.rounds import Answered, Close, Event, Failed, NodesChanged, Send, Ticked, open_round, step
from zkd.models.checkpoints import pack, unpack
from zkd.models.fit import Prepared, fit
from zkd.models.messages import ask_in, ask_out, partial_in, partial_out
from zkd.models.partials import Ask, Partial, merge, partial_of
from zkd.models.plan import Plan
from zkd.models.training import start

PARTS = 16


class Nodes:
    """Nodes that hold parts twice each; at most one of them is away at a time, so that no part is lost."""

    def __init__(self, ready: Prepared, count: int, seed: int) -> None:
        self.ready, self.rng = ready, random.Random(seed)
        self.names = [f"n{number}" for number in range(count)]
        self.homes = {
            part: Home(len(ready.parts[part]), tuple(self.rng.sample(self.names, min(2, count))))
            for part in range(PARTS)
        }
        self.live = set(self.names)
        self.trouble = 0

    def round(self, number: int, ask: Ask) -> Partial:
        plain, arrays = ask_out(ask)
        asked = ask_in(plain, arrays, self.ready.model)
        now_s = 0.0
        state, commands = open_round(1, number, self.homes, self.live, now_s)
        sent: list[Send] = []
        answers: dict[int, Partial] = {}
        while True:
            sent += [command for command in commands if isinstance(command, Send)]
            end = commands[-1] if commands else None
            if isinstance(end, Close):
                return merge(answers[number] for number in end.asks)
            assert not state.is_over, end
            now_s += self.rng.random()
            event = self.happen(number, sent)
            if isinstance(event, Answered):
                done = next(send for send in sent if send.ask == event.ask)
                own = [(part, self.ready.parts[part]) for part in done.parts]
                answers[done.ask] = partial_in(partial_out(partial_of(self.ready.model, asked, own, self.ready.scaler)))
            state, commands = step(state, event, now_s)

    def happen(self, number: int, sent: list[Send]) -> Event:
        draw = self.rng.random()
        away = set(self.names) - self.live
        if len(self.names) > 1 and draw < 0.2:
            self.trouble += 1
            self.live = set(self.names) if away else self.live - {self.rng.choice(self.names)}
            return NodesChanged(frozenset(self.live))
        send = self.rng.choice(sent)
        if send.node not in self.live or draw < 0.4:
            return Ticked()
        if draw < 0.43:
            self.trouble += 1
            return Failed(1, number, send.ask, "the worker died")
        return Answered(1, number, send.ask, send.parts)


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("softmax", "newton"), ("softmax", "lbfgs"), ("svm", "nesterov"), ("logistic", "adam"), ("logistic", "average")],
)
def test_the_weights_are_those_of_an_undisturbed_run_to_the_last_bit(kind: str, optimizer: str) -> None:
    ready = prepared(kind, "wine" if kind == "softmax" else "breast_cancer", PARTS)
    plan = Plan(ready.model, optimizer, l2=1.0, epochs=3, batch_rows=64, max_rounds=60)  # type: ignore[arg-type]
    undisturbed = fit(ready, plan).outcome
    trouble = 0
    for count in (1, 2, 3, 8):
        nodes = Nodes(ready, count, seed=count)
        run = start(plan, ready.counts)
        while (ask := run.ask) is not None:
            if run.number % 7 == 3:  # another coordinator takes over
                described, arrays = pack(run)
                run = unpack(described, arrays, plan)
            run = run.told(nodes.round(run.number, ask))
        trouble += nodes.trouble
        assert run.outcome.w.tobytes() == undisturbed.w.tobytes()
        assert np.array_equal(run.number, undisturbed.rounds)
    assert trouble > 10
