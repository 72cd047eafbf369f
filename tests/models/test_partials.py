"""Gradients are slopes of losses, Hessians slopes of gradients; parts add up, in the same bits for any nodes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.models.data import loaded, prepared
from zkd.errors import BadTraining
from zkd.models.fit import RawPart, fit, prepare, split_rows
from zkd.models.folding import is_foldable
from zkd.models.losses import logistic, softmax
from zkd.models.messages import partial_in, partial_out
from zkd.models.model import Kind, Model, first_parameters
from zkd.models.partials import Ask, merge, partial, partial_of, totals
from zkd.models.picks import Batch, Local, Sample, picked_rows
from zkd.models.plan import Plan
from zkd.models.rows import Rows, Scaler, block_rows, rows_of, stacked
from zkd.models.training import start

RNG = np.random.default_rng(3)
N, D = 400, 5
X = RNG.normal(size=(N, D)) * [1, 10, 0.1, 1, 3] + [0, 5, 0, -2, 1]
SCALER = Scaler(X.mean(axis=0), X.std(axis=0))
WEIGHT = RNG.random(N) * (RNG.random(N) > 0.2)
HELD = RNG.random(N) < 0.25
TARGETS: dict[str, Any] = {
    "linear": RNG.normal(size=N),
    "logistic": RNG.integers(0, 2, N),
    "svm": RNG.integers(0, 2, N),
    "poisson": RNG.integers(0, 6, N),
    "softmax": RNG.integers(0, 4, N),
}
MODELS = [
    Model("linear", D),
    Model("linear", D, intercept=False),
    Model("logistic", D),
    Model("svm", D),
    Model("poisson", D),
    Model("softmax", D, 4),
    Model("softmax", D, 4, intercept=False),
    Model("mlp", D, 4, (6,)),
    Model("mlp", D, 4, (5, 4, 3)),
    Model("mlp", D, 1, (5, 4)),
]
IDS = [f"{m.kind}{''.join(f'-{h}' for h in m.hidden)}-{m.outputs}{'' if m.intercept else '-free'}" for m in MODELS]


def rows_for(model: Model) -> Rows:
    kind = ("softmax" if model.outputs > 1 else "linear") if model.kind == "mlp" else model.kind
    return rows_of([X[:, :2], X[:, 2].astype(np.float64), X[:, 3:]], TARGETS[kind], weight=WEIGHT, held_out=HELD)


def sums(model: Model, rows: Rows, **ask: Any):
    return totals(model, merge([partial(model, Ask(**ask), rows, SCALER, part=0)]))


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_derivatives_are_slopes(model: Model) -> None:
    rows = rows_for(model)
    w = RNG.normal(size=model.size) * 0.4
    wants = "hessian" if model.is_convex else "gradient"
    at = sums(model, rows, w=w, wants=wants)
    h = 1e-6
    moved = [(sums(model, rows, w=w + h * e, wants="gradient"), sums(model, rows, w=w - h * e)) for e in np.eye(len(w))]
    slope = np.array([(ahead.loss - behind.loss) / (2 * h) for ahead, behind in moved])
    np.testing.assert_allclose(at.gradient, slope, atol=2e-7 * np.abs(slope).max())
    if at.hessian is not None:
        bend = np.array([(ahead.gradient - behind.gradient) / (2 * h) for ahead, behind in moved])
        np.testing.assert_allclose(at.hessian, bend, atol=2e-7 * np.abs(bend).max())
        assert np.array_equal(at.hessian, at.hessian.T)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_folding_the_scaler_into_the_parameters_changes_nothing_but_rounding(model: Model) -> None:
    rows = rows_for(model)
    w = RNG.normal(size=model.size) * 0.4
    wants: Any = "hessian" if model.is_convex else "gradient"
    by_hand = Rows(((X - SCALER.mean) / SCALER.scale,), rows.target, rows.weight, rows.held_out)
    ours, plain = (
        totals(model, partial(model, Ask(w, wants), some, scaler, part=0))
        for some, scaler in ((rows, SCALER), (by_hand, None))
    )
    assert is_foldable(model, SCALER) == model.intercept
    np.testing.assert_allclose(ours.gradient, plain.gradient, rtol=1e-10, atol=1e-12 * np.abs(plain.gradient).max())
    if plain.hessian is not None:
        np.testing.assert_allclose(ours.hessian, plain.hessian, rtol=1e-10, atol=1e-12 * np.abs(plain.hessian).max())


def test_a_mean_far_from_zero_is_taken_off_each_row() -> None:
    far = Scaler(np.array([0.0, 1e9]), np.array([1.0, 3.0]))
    model = Model("linear", 2)
    assert not is_foldable(model, far)
    offset = RNG.integers(-5, 6, 60).astype(float)
    y = RNG.normal(size=60)
    w = np.array([1.0, -2.0, 0.5])
    x = RNG.normal(size=60)
    near = Scaler(np.zeros(2), far.scale)
    ours = totals(model, partial(model, Ask(w, "hessian"), rows_of([x, 1e9 + offset], y), far, part=0))
    same = totals(model, partial(model, Ask(w, "hessian"), rows_of([x, offset], y), near, part=0))
    np.testing.assert_allclose(ours.gradient, same.gradient, rtol=1e-12)
    np.testing.assert_allclose(ours.hessian, same.hessian, rtol=1e-12)


def test_losses_and_gradients_are_what_the_formulas_say() -> None:
    """An oracle of its own for each, over the rows that are neither held out nor without weight."""
    z_x = np.column_stack([(X - X.mean(axis=0)) / X.std(axis=0), np.ones(N)])
    s = WEIGHT * ~HELD
    w = RNG.normal(size=D + 1)
    z = z_x @ w
    for kind, loss, slope in (
        ("linear", lambda y: 0.5 * (z - y) ** 2, lambda y: z - y),
        ("logistic", lambda y: np.logaddexp(0, z) - y * z, lambda y: 1 / (1 + np.exp(-z)) - y),
        ("poisson", lambda y: np.exp(z) - y * z, lambda y: np.exp(z) - y),
        (
            "svm",
            lambda y: np.maximum(0, 1 - (2 * y - 1) * z) ** 2,
            lambda y: -2 * (2 * y - 1) * np.maximum(0, 1 - (2 * y - 1) * z),
        ),
    ):
        model = Model(kind, D)  # type: ignore[arg-type]
        got = sums(model, rows_for(model), w=w)
        y = TARGETS[kind]
        assert got.loss == pytest.approx(s @ loss(y), rel=1e-12)
        assert got.held_loss == pytest.approx((WEIGHT * HELD) @ loss(y), rel=1e-12)
        assert (got.weight, got.held_weight) == pytest.approx((s.sum(), (WEIGHT * HELD).sum()), rel=1e-13)
        np.testing.assert_allclose(got.gradient, z_x.T @ (s * slope(y)), rtol=1e-10)


def test_the_loss_of_sure_and_right_rows_is_small_and_not_zero() -> None:
    sure = logistic(np.array([40.0, -40.0, 40.0, 1000.0]), np.array([1.0, 0.0, 0.0, 0.0]), curvature=True)
    np.testing.assert_allclose(sure.loss, [np.exp(-40), np.exp(-40), 40.0, 1000.0], rtol=1e-15)
    np.testing.assert_allclose(sure.slope, [-np.exp(-40), np.exp(-40), 1.0, 1.0], rtol=1e-15)
    loss, slope, p = softmax(np.array([[0.0, 40.0, 0.0], [0.0, -2000.0, 1.0]]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(loss, [2 * np.exp(-40), 2001 + np.log1p(np.exp(-1))], rtol=1e-15)
    np.testing.assert_allclose(slope[0, 1], -2 * np.exp(-40), rtol=1e-15)
    np.testing.assert_allclose(slope.sum(axis=1), 0, atol=1e-16)
    assert np.all(np.isfinite(p))


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_rows_beyond_one_block_count_like_all(model: Model) -> None:
    """More rows than a block has, and a part whose last block is short."""
    assert block_rows(D) < 3 * N * 20
    rows = rows_for(model)
    long = Rows(
        tuple(np.concatenate([column] * 20) for column in rows.columns),
        np.concatenate([rows.target] * 20),
        np.concatenate([WEIGHT] * 20),
        np.concatenate([HELD] * 20),
    )
    w = RNG.normal(size=model.size) * 0.3
    once, often = sums(model, rows, w=w), sums(model, long, w=w)
    assert often.rows == 20 * once.rows
    np.testing.assert_allclose(often.gradient, 20 * once.gradient, rtol=1e-9, atol=1e-9)
    assert often.loss == pytest.approx(20 * once.loss, rel=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_clipping_bounds_each_rows_gradient(model: Model) -> None:
    rows = rows_for(model)
    w = RNG.normal(size=model.size) * 0.5
    single = [
        sums(model, Rows(tuple(c[i : i + 1] for c in rows.columns), rows.target[i : i + 1]), w=w).gradient
        for i in range(60)
    ]
    norms = np.array([np.linalg.norm(gradient) for gradient in single])
    clip = float(np.median(norms))
    clipped = sum(g * min(1.0, clip / norm) for g, norm in zip(single, norms, strict=True) if norm > 0)
    first = Rows(tuple(c[:60] for c in rows.columns), rows.target[:60])
    np.testing.assert_allclose(sums(model, first, w=w, clip=clip).gradient, clipped, rtol=1e-8, atol=1e-10)


ASKS = {
    "loss": {"wants": "loss"},
    "gradient": {},
    "hessian": {"wants": "hessian"},
    "batch": {"batch": Batch(1, 2, 0, 3)},
    "sample": {"sample": Sample(1, 2, 0.3), "clip": 1.0},
    "local": {"local": Local(1, 2, 2, 7, 0.1, 0.01)},
}


@pytest.mark.parametrize("ask", ASKS)
def test_partials_add_up_to_the_same_bits_for_any_nodes(ask: str) -> None:
    model = Model("softmax", 13, 3)
    ready = prepared("softmax", "wine", parts=11)
    w = RNG.normal(size=model.size)
    scaler = ready.scaler
    # No row weights where rows are clipped.
    parts = [partial(model, Ask(w, **ASKS[ask]), rows, scaler, part=n) for n, rows in enumerate(ready.parts)]
    found = set()
    for nodes in (1, 2, 3, 8):
        for seed in range(5):
            rng = random.Random(seed)
            groups: list[list[Any]] = [[] for _ in range(nodes)]
            for item in rng.sample(parts, len(parts)):
                rng.choice(groups).append(item)
            answers = [partial_in(partial_out(merge(group))) for group in groups if group]
            if seed == 0:  # a node that adds its parts up at once
                numbers = list(enumerate(ready.parts))
                answers = [partial_of(model, Ask(w, **ASKS[ask]), numbers[n::nodes], scaler) for n in range(nodes)]
            rng.shuffle(answers)
            whole = totals(model, merge(answers))
            hessian = b"" if whole.hessian is None else whole.hessian.tobytes()
            found.add((whole.rows, whole.loss, whole.gradient.tobytes(), hessian))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("kind", "name", "optimizer"),
    [("softmax", "wine", "newton"), ("logistic", "breast_cancer", "lbfgs"), ("softmax", "iris", "adam")],
)
def test_final_weights_have_the_same_bits_for_1_2_3_and_8_nodes(kind: str, name: str, optimizer: str) -> None:
    """Whole runs, with parts dealt out to nodes anew each round."""
    ready = prepared(kind, name, parts=10)
    plan = Plan(ready.model, optimizer, l2=1.0, epochs=3, batch_rows=16)  # type: ignore[arg-type]
    finals = set()
    for nodes in (1, 2, 3, 8):
        rng = random.Random(nodes)
        run = start(plan, ready.counts)
        while (ask := run.ask) is not None:
            groups: list[list[Any]] = [[] for _ in range(nodes)]
            for number in rng.sample(range(10), 10):
                rows = ready.parts[number]
                rng.choice(groups).append(partial(ready.model, ask, rows, ready.scaler, part=number))
            run = run.told(merge(merge(group) for group in groups if group))
        finals.add(run.outcome.w.tobytes())
    assert len(finals) == 1


def test_other_parts_of_the_same_rows_lead_to_the_same_weights_but_for_rounding() -> None:
    x, y, _, _ = loaded("breast_cancer")
    weights = []
    for parts in (1, 2, 7, 64):
        ready = prepare("logistic", split_rows(RawPart([x], y), parts))
        weights.append(fit(ready, Plan(ready.model, "newton", l2=1.0)).outcome.w)
    assert np.ptp(weights, axis=0).max() < 1e-12


def test_an_empty_part_adds_nothing() -> None:
    model = Model("logistic", 13)
    empty = rows_of([np.zeros((0, 13))], np.zeros(0))
    some = rows_of([RNG.normal(size=(9, 13))], RNG.integers(0, 2, 9))
    w = RNG.normal(size=14)
    for ask in (Ask(w), Ask(w, "hessian"), Ask(w, local=Local(0, 0, 1, 4, 0.1, 0.0)), Ask(w, batch=Batch(0, 0, 0, 2))):
        alone = totals(model, partial(model, ask, some, None, part=0))
        both = totals(model, merge([partial(model, ask, some, None, part=0), partial(model, ask, empty, None, part=1)]))
        assert both.loss == alone.loss
        assert np.array_equal(both.gradient, alone.gradient)


def test_the_batches_of_an_epoch_hold_every_row_once() -> None:
    for rows in (0, 1, 2, 17, 100):
        picked = [picked_rows(rows, 4, Batch(9, 1, index, 7)) for index in range(7)]
        assert sorted(np.concatenate(picked).tolist()) == list(range(rows))
    assert not np.array_equal(picked_rows(100, 4, Batch(9, 1, 0, 2)), picked_rows(100, 4, Batch(9, 2, 0, 2)))
    assert not np.array_equal(picked_rows(100, 4, Batch(9, 1, 0, 2)), picked_rows(100, 5, Batch(9, 1, 0, 2)))


def test_a_sample_draws_each_row_with_its_rate() -> None:
    counts = np.zeros(200)
    for round_number in range(500):
        counts[picked_rows(200, 0, Sample(1, round_number, 0.2))] += 1
    assert abs(counts.mean() / 500 - 0.2) < 0.005
    assert np.abs(counts / 500 - 0.2).max() < 0.09


def test_columns_of_any_number_kind_count_as_float64() -> None:
    model = Model("linear", 4)
    table = RNG.integers(0, 100, (50, 4)).astype(np.float64)
    y = RNG.normal(size=50)
    narrow = [table[:, 0].astype(np.int8), table[:, 1:3].astype(np.float32), (table[:, 3]).astype(np.uint16)]
    w = RNG.normal(size=5)
    one, other = (
        totals(model, partial(model, Ask(w), rows_of(columns, y), None, part=0)) for columns in ([table], narrow)
    )
    assert np.array_equal(one.gradient, other.gradient)
    packed = stacked(rows_of(narrow, y))
    assert len(packed.columns) == 1
    assert np.array_equal(totals(model, partial(model, Ask(w), packed, None, part=0)).gradient, one.gradient)


@pytest.mark.parametrize("wide", [1, 2, 7, 16, 51])
@pytest.mark.parametrize("kind", ["logistic", "linear", "poisson", "svm", "softmax", "mlp"])
def test_rows_in_one_piece_have_the_bits_of_rows_in_columns(kind: Kind, wide: int) -> None:
    dice = np.random.default_rng(wide)
    outputs, hidden = (3, (5,) if kind == "mlp" else ()) if kind in ("softmax", "mlp") else (1, ())
    scalers = (None, Scaler(np.full(wide, 0.3), np.full(wide, 1.7)), Scaler(np.full(wide, 99.0), np.ones(wide)))
    for rows in (0, 1, 63, 9001):
        columns = [dice.normal(size=(rows, wide))]
        target = dice.integers(0, outputs if outputs > 1 else 2, rows)
        loose = rows_of(columns, target, weight=dice.random(rows), held_out=dice.random(rows) < 0.2)
        whole = stacked(loose)
        for intercept in (True,) if kind == "mlp" else (True, False):
            model = Model(kind, wide, outputs, hidden, intercept)
            w = dice.normal(size=model.size) / 9
            asks = [Ask(w), Ask(w, batch=Batch(1, 1, 0, 3))]
            if model.is_convex and wide < 20:
                asks.append(Ask(w, "hessian"))
            for scaler in scalers:
                for ask in asks:
                    one = partial(model, ask, loose, scaler, part=4)
                    other = partial(model, ask, whole, scaler, part=4)
                    assert np.array_equal(one.sums.digits, other.sums.digits)
                    if one.hessian is not None and other.hessian is not None:
                        assert np.array_equal(one.hessian.digits, other.hessian.digits)


@pytest.mark.parametrize(
    ("columns", "target", "rest", "message"),
    [
        ([], [1.0], {}, "at least one column"),
        ([[1.0, 2.0]], [1.0], {}, r"features\[0\]: expected 1 rows as in the target, got 2"),
        ([["a"]], [1.0], {}, r"features\[0\]: expected numbers, got <U1; encode text"),
        ([np.ones((1, 2, 2))], [1.0], {}, r"got shape \(1, 2, 2\)"),
        ([[1.0]], [[1.0]], {}, "target: expected one number a row"),
        ([[1.0]], ["x"], {}, "target: expected numbers"),
        ([[1.0]], [1.0], {"weight": [-1.0]}, "weight: expected finite numbers, none below 0"),
        ([[1.0]], [1.0], {"weight": [np.nan]}, "weight: expected finite"),
        ([[1.0]], [1.0], {"weight": [1.0, 2.0]}, "weight: expected 1 rows"),
        ([[1.0]], [1.0], {"held_out": [1]}, "held_out: expected 1 booleans"),
    ],
)
def test_rows_that_do_not_fit_are_refused(columns: Any, target: Any, rest: Any, message: str) -> None:
    with pytest.raises(BadTraining, match=message):
        rows_of(columns, target, **rest)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "tree", "features": 2}, "expected one of linear"),
        ({"kind": "linear", "features": 0}, "at least one feature"),
        ({"kind": "softmax", "features": 2, "outputs": 1}, "2 classes or more"),
        ({"kind": "logistic", "features": 2, "outputs": 3}, "one output"),
        ({"kind": "mlp", "features": 2, "outputs": 3}, "1 to 3 hidden"),
        ({"kind": "mlp", "features": 2, "outputs": 3, "hidden": (4, 4, 4, 4)}, "1 to 3 hidden"),
        ({"kind": "linear", "features": 2, "hidden": (4,)}, "only a net"),
        ({"kind": "softmax", "features": 10**6, "outputs": 1000}, "at most 16,777,216 parameters"),
    ],
)
def test_models_that_are_none_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(BadTraining, match=message):
        Model(**fields)


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = Model("logistic", 3)
    rows = rows_of([np.ones((2, 4))], [0, 1])
    with pytest.raises(BadTraining, match="the model has 3, the rows have 4"):
        partial(model, Ask(np.zeros(4)), rows, None, part=0)
    with pytest.raises(BadTraining, match=r"expected 5 float64 for logistic, got float64 \(4,\)"):
        partial(Model("logistic", 4), Ask(np.zeros(4)), rows, None, part=0)
    net = Model("mlp", 4, 2, (3,))
    with pytest.raises(BadTraining, match="use lbfgs, nesterov or adam"):
        partial(net, Ask(first_parameters(net), "hessian"), rows, None, part=0)
