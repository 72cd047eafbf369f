"""How runs end, what is kept, and that they can be interrupted anywhere without a bit of difference."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.models.data import SPECTOR, loaded, prepared, standardised
from zkd.errors import BadTraining, NoOptimum
from zkd.models.checkpoints import pack, unpack
from zkd.models.fit import RawPart, fit, prepare, split_rows
from zkd.models.model import Model, TargetMean, first_parameters
from zkd.models.partials import Ask, merge, partial, partial_of, totals
from zkd.models.plan import OPTIMIZERS, Plan, Privacy, default_optimizer, penalty_path
from zkd.models.predict import predict
from zkd.models.privacy import epsilon_of, noise_vector
from zkd.models.split import content_hashes, held_out
from zkd.models.story import Counts
from zkd.models.training import Run, start


def plan_for(optimizer: str, ready: Any, **rest: Any) -> Plan:
    chosen = {"l2": 1.0, "epochs": 3, "batch_rows": 32, "max_rounds": 200, **rest}
    return Plan(ready.model, optimizer, **chosen)  # type: ignore[arg-type]


def answer(run: Run, ready: Any) -> Run:
    ask = run.ask
    assert ask is not None
    return run.told(merge(partial(ready.model, ask, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_packed_after_every_round_ends_in_the_same_bits(optimizer: str) -> None:
    """Each round is done by a run that knows nothing but a checkpoint, as after a coordinator's death."""
    ready = prepared("logistic", "breast_cancer")
    plan = plan_for(optimizer, ready, max_rounds=50)
    whole = fit(ready, plan)
    run = start(plan, ready.counts)
    while run.ask is not None:
        described, arrays = pack(run)
        raw = {name: array.tobytes() for name, array in arrays.items()}
        copies = {n: np.frombuffer(raw[n], a.dtype).reshape(a.shape).copy() for n, a in arrays.items()}
        run = answer(unpack(json.loads(json.dumps(described)), copies, plan), ready)
    assert run.outcome.w.tobytes() == whole.outcome.w.tobytes()
    assert run.number == whole.number
    assert repr(run.history) == repr(whole.history)


def test_a_checkpoint_of_another_plan_or_version_is_refused() -> None:
    ready = prepared("logistic", "breast_cancer")
    plan = plan_for("lbfgs", ready)
    described, arrays = pack(answer(start(plan, ready.counts), ready))
    with pytest.raises(BadTraining, match="another plan"):
        unpack(described, arrays, replace(plan, l2=2.0))
    with pytest.raises(BadTraining, match="version"):
        unpack({**described, "version": 9}, arrays, plan)
    for name in ("number", "state", "accepted"):
        broken = json.loads(json.dumps(described))
        broken["run"][name] = {"is": "os.system", "fields": {}}
        with pytest.raises(BadTraining, match="damaged"):
            unpack(broken, arrays, plan)
    with pytest.raises(BadTraining, match="damaged"):
        unpack(described, {}, plan)


def test_an_answer_without_what_was_asked_for_is_refused() -> None:
    ready = prepared("logistic", "breast_cancer")
    run = start(plan_for("newton", ready), ready.counts)
    for wants in ("loss", "gradient"):
        short = partial(ready.model, Ask(run.state.at, wants), ready.parts[0], ready.scaler, part=0)  # type: ignore[arg-type]
        with pytest.raises(BadTraining, match="expected sums up to the hessian"):
            run.told(short)


# --- how runs end -------------------------------------------------------------------------------------


def test_the_number_of_rounds_is_bounded() -> None:
    ready = prepared("logistic", "breast_cancer")
    for optimizer in OPTIMIZERS:
        outcome = fit(ready, plan_for(optimizer, ready, max_rounds=4)).outcome
        assert (outcome.reason, outcome.rounds) == ("max_rounds", 4)
        assert outcome.is_approximate
        assert np.all(np.isfinite(outcome.w))


def test_line_searches_count_as_rounds_and_are_told() -> None:
    ready = prepared("poisson", "diabetes")
    run = fit(ready, plan_for("lbfgs", ready))
    assert len(run.history) == run.number - 1  # the last looked at the Hessian
    trials = [entry for entry in run.history if not entry.is_accepted]
    assert 0 < len(trials) < run.number / 2


def test_newton_halves_a_step_that_goes_too_far() -> None:
    """Counts of some hundreds, from an intercept of 0: the first full step overshoots by e^100."""
    ready = prepared("poisson", "diabetes")
    plan = plan_for("newton", ready)
    run = start(plan, ready.counts, np.zeros(ready.model.size))
    while run.ask is not None:
        run = answer(run, ready)
    assert any(not entry.is_accepted for entry in run.history)
    np.testing.assert_allclose(run.outcome.w, fit(ready, plan).outcome.w, atol=1e-8)


def test_a_step_that_is_far_too_long_diverges_and_says_so() -> None:
    ready = prepared("linear", "diabetes")
    outcome = fit(ready, plan_for("sgd", ready, learning_rate=1e6, epochs=60)).outcome
    assert outcome.reason == "diverged"


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs", "nesterov"])
@pytest.mark.parametrize("l2", [0.0, 1.0])
def test_a_start_that_is_beyond_floats_diverges_and_says_so(optimizer: str, l2: float) -> None:
    ready = prepared("poisson", "diabetes")
    run = start(plan_for(optimizer, ready, l2=l2), ready.counts, np.full(ready.model.size, 1e4))
    run = answer(run, ready)
    assert (run.reason, run.outcome.bound) == ("diverged", None)


def test_floats_end_what_the_tolerance_does_not() -> None:
    ready = prepared("logistic", "breast_cancer")
    best = fit(ready, plan_for("newton", ready)).outcome.w
    for optimizer in ("newton", "lbfgs"):
        outcome = fit(ready, plan_for(optimizer, ready, tol=1e-30, max_rounds=600)).outcome
        assert outcome.reason in ("stalled", "precision")
        assert np.abs(outcome.w - best).max() < 1e-8


def test_a_run_can_be_stopped_after_any_round() -> None:
    ready = prepared("logistic", "breast_cancer")
    for optimizer in OPTIMIZERS:
        run = start(plan_for(optimizer, ready), ready.counts)
        for _ in range(3):
            stopped = run.stop("cancelled")
            assert stopped.ask is None
            assert stopped.outcome.reason == "cancelled"
            assert np.all(np.isfinite(stopped.outcome.w))
            run = answer(run, ready)


def test_a_stopped_path_keeps_the_stages_that_it_finished() -> None:
    ready = prepared("logistic", "breast_cancer")
    plan = plan_for("newton", ready, l2=(10.0, 1.0, 0.1))
    run = start(plan, ready.counts)
    while run.stage == 0:
        run = answer(run, ready)
    stopped = run.stop("max_time")
    assert [stage.reason for stage in stopped.stages] == ["tolerance", "max_time"]
    described, arrays = pack(stopped)
    assert unpack(described, arrays, plan).outcome.reason == "max_time"


# --- over-fitting -------------------------------------------------------------------------------------


def split_net(share: float = 0.3) -> Any:
    """Few rows, and held-out ones: a net over-fits them."""
    x, y, _, _ = loaded("breast_cancer")
    held = held_out(content_hashes([x]), share, seed=3)
    return prepare("mlp", split_rows(RawPart([x], y, held_out=held), 3), hidden=(32,), tells_classes=True)


def test_early_stopping_restores_the_best_round() -> None:
    ready = split_net()
    run = fit(ready, plan_for("adam", ready, l2=0.0, epochs=300, learning_rate=0.01, patience=10, max_rounds=10**6))
    outcome = run.outcome
    assert outcome.reason == "patience"
    losses = [entry.held_loss for entry in run.history]
    assert outcome.held_loss == min(losses) < losses[-1]
    assert len(losses) - 1 - losses.index(min(losses)) == 10
    parts = list(enumerate(ready.parts))
    again = totals(ready.model, partial_of(ready.model, Ask(outcome.w, "loss"), parts, ready.scaler))
    assert again.held_loss / again.held_weight == outcome.held_loss


def test_a_restored_round_is_not_taken_for_the_optimum() -> None:
    x, y, _, _ = loaded("breast_cancer")
    held = held_out(content_hashes([x]), 0.3)
    ready = prepare("logistic", split_rows(RawPart([x], y, held_out=held), 3))
    outcome = fit(ready, plan_for("newton", ready, l2=1e-4, patience=50)).outcome
    assert outcome.reason == "tolerance"
    assert outcome.is_approximate
    assert outcome.stages[0].is_restored
    plain = fit(ready, plan_for("newton", ready, l2=1e-4)).outcome
    assert not plain.is_approximate
    assert plain.held_loss > outcome.held_loss
    assert np.abs(plain.w - outcome.w).max() > 0.1
    assert np.linalg.norm(outcome.w[:-1] - plain.w[:-1]) <= outcome.bound


def test_patience_without_held_out_rows_is_refused() -> None:
    ready = prepared("logistic", "breast_cancer")
    with pytest.raises(BadTraining, match="no held-out rows to see over-fitting by"):
        start(plan_for("adam", ready, patience=3), ready.counts)


def test_held_out_rows_do_not_change_what_is_trained() -> None:
    x, y, _, _ = loaded("breast_cancer")
    held = np.arange(len(x)) % 4 == 0
    inside = prepare("logistic", split_rows(RawPart([x], y, held_out=held), 3))
    outside = prepare("logistic", split_rows(RawPart([x[~held]], y[~held]), 3))
    ours, theirs = (fit(ready, plan_for("newton", ready)).outcome for ready in (inside, outside))
    np.testing.assert_allclose(ours.w, theirs.w, atol=1e-9)
    z = (x[held] - x[~held].mean(axis=0)) / x[~held].std(axis=0) @ ours.w[:-1] + ours.w[-1]
    assert ours.held_loss == pytest.approx(np.mean(np.logaddexp(0, z) - y[held] * z), rel=1e-9)


def test_a_path_of_penalties_starts_warm_and_keeps_the_best_by_held_out_loss() -> None:
    x, y, _, _ = loaded("breast_cancer")
    held = held_out(content_hashes([x]), 0.3)
    ready = prepare("logistic", split_rows(RawPart([x], y, held_out=held), 3))
    path = penalty_path(1000.0, 1e-4, 8)
    run = fit(ready, plan_for("newton", ready, l2=path, max_rounds=100))
    stages = run.outcome.stages
    assert [stage.l2 for stage in stages] == pytest.approx(path)
    assert all(stage.reason == "tolerance" for stage in stages)
    best = min(stages, key=lambda stage: stage.held_loss)
    assert (run.outcome.l2, run.outcome.held_loss) == (best.l2, best.held_loss)
    assert stages[0].l2 > best.l2 > stages[-1].l2
    for stage in stages:
        cold = fit(ready, plan_for("newton", ready, l2=stage.l2)).outcome
        assert np.abs(cold.w - stage.w).max() < 1e-6
    warm, cold = fit(ready, plan_for("newton", ready, l2=(1.0, 0.9))), fit(ready, plan_for("newton", ready, l2=0.9))
    assert warm.outcome.stages[1].rounds <= 6 < cold.outcome.rounds


# --- problems without an optimum ----------------------------------------------------------------------


def collinear() -> Any:
    x, y, _, _ = loaded("diabetes")
    return prepare(
        "linear",
        split_rows(RawPart([x, x[:, 2] - 3.0 * x[:, 5]], y), 3),
        names=[*"abcdefghij", "copy"],
    )


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs", "gd"])
def test_collinear_columns_are_refused_by_name(optimizer: str) -> None:
    ready = collinear()
    with pytest.raises(NoOptimum, match=r"columns are collinear: c, f, copy make up one another.*l2 > 0"):
        fit(ready, plan_for(optimizer, ready, l2=0.0))
    assert fit(ready, plan_for(optimizer, ready, l2=1.0)).reason


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_separable_classes_are_refused(optimizer: str) -> None:
    x, y, _, _ = loaded("iris")
    ready = prepare("logistic", split_rows(RawPart([x], y == 0), 3), names=["sl", "sw", "pl", "pw"])
    with pytest.raises(NoOptimum, match=r"classes are separable by .*l2 > 0"):
        fit(ready, plan_for(optimizer, ready, l2=0.0, max_rounds=1000))
    ready = prepare("softmax", split_rows(RawPart([x], y), 3))
    with pytest.raises(NoOptimum, match="classes are separable"):
        fit(ready, plan_for(optimizer, ready, l2=0.0, max_rounds=1000))


def test_classes_that_one_feature_half_separates_are_refused() -> None:
    """All rows with the flag are of one class: the flag's weight has no optimum, others have."""
    flag = np.where(SPECTOR[:, 3] == 1, np.arange(32) % 2, 0).astype(float)
    ready = prepare("logistic", [RawPart([SPECTOR[:, :3], flag], SPECTOR[:, 3])], names=["gpa", "tuce", "psi", "flag"])
    with pytest.raises(NoOptimum, match=r"separable by .*flag"):
        fit(ready, plan_for("newton", ready, l2=0.0))


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_a_jitter_is_used_where_it_was_allowed_and_is_reported(optimizer: str) -> None:
    ready = collinear()
    outcome = fit(ready, plan_for(optimizer, ready, l2=0.0, jitter=1e-6, max_rounds=1000)).outcome
    assert len(outcome.notes) == 1
    assert outcome.notes[0].startswith("l2 was raised from 0 to 0.000")
    assert outcome.l2 == pytest.approx(1e-6 * ready.counts.weight)
    plain = fit(prepared("linear", "diabetes"), plan_for("newton", prepared("linear", "diabetes"), l2=0.0)).outcome
    assert outcome.total == pytest.approx(plain.total, rel=1e-4)


def test_constant_columns_get_no_weight() -> None:
    x, y, _, _ = standardised("diabetes")
    ready = prepare("linear", split_rows(RawPart([x, np.ones(len(x))], y), 2))
    for optimizer in ("newton", "lbfgs"):
        assert fit(ready, plan_for(optimizer, ready, l2=0.0)).outcome.w[-2] == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "bfgs"}, "expected one of newton, lbfgs"),
        ({"l2": -1.0}, "l2: expected a finite number, 0 or more"),
        ({"l2": np.nan}, "l2: expected a finite"),
        ({"l2": ()}, "a number, or several"),
        ({"l2": (1.0, 2.0)}, "from the largest to the smallest"),
        ({"tol": 0.0}, "tol: expected a finite number above 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"epochs": 0}, "epochs: expected 1 or more"),
        ({"patience": 0}, "patience: expected 1 or more"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"privacy": Privacy(1.0, 1.0, 1e-5)}, "private with sgd and adam, not with lbfgs"),
        ({"optimizer": "adam", "privacy": Privacy(0.0, 1.0, 1e-5)}, "clip, noise and epsilon above 0"),
        ({"optimizer": "adam", "privacy": Privacy(1.0, 1e-300, 1e-5)}, "expected noise from 1e-12 to"),
        ({"optimizer": "average", "local_epochs": 10**12}, "local_epochs: expected at most 100"),
    ],
)
def test_plans_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadTraining, match=message):
        Plan(prepared("logistic", "breast_cancer").model, **fields)


def test_newton_is_the_default_where_the_hessian_is_small() -> None:
    assert default_optimizer(Model("softmax", 64, 10)) == "newton"
    assert default_optimizer(Model("softmax", 784, 10)) == "lbfgs"
    assert default_optimizer(Model("mlp", 64, 10, (8,))) == "adam"
    with pytest.raises(BadTraining, match="newton is for linear models of at most 1024 parameters"):
        Plan(Model("softmax", 784, 10), "newton")
    with pytest.raises(BadTraining, match="cannot be checked that there is an optimum"):
        Plan(Model("softmax", 784, 10), "lbfgs", l2=0.0)


def test_a_run_without_rows_does_not_start() -> None:
    ready = prepared("logistic", "breast_cancer")
    with pytest.raises(BadTraining, match="expected some, got 0 rows"):
        start(plan_for("newton", ready), Counts(0, 0.0, TargetMean(0.0)))
    with pytest.raises(BadTraining, match="finite numbers to start from"):
        start(plan_for("newton", ready), ready.counts, np.full(ready.model.size, np.nan))


# --- nets ---------------------------------------------------------------------------------------------


def test_a_net_tells_digits_as_well_as_scikit_learns_does() -> None:
    """64 hidden, 60 epochs of adam, batches of 128: scikit-learn's is at .966 to .980 over 5 seeds."""
    x, y, test_x, test_y = loaded("digits")
    ready = prepare("mlp", split_rows(RawPart([x], y), 4), hidden=(64,), tells_classes=True)
    accuracies = []
    for seed in (0, 1):
        outcome = fit(
            ready, plan_for("adam", ready, l2=1e-4, epochs=60, batch_rows=128, seed=seed, max_rounds=10**6)
        ).outcome
        told = predict(ready.model, outcome.w, [test_x], ready.scaler)
        accuracies.append(np.mean(told.classes == test_y))
        assert outcome.is_approximate
        assert outcome.bound is None
    assert min(accuracies) >= 0.956
    assert np.mean(accuracies) >= 0.962  # with steps half as long it was 0.957


def test_a_net_fits_numbers() -> None:
    x, y, _, _ = loaded("diabetes")
    ready = prepare("mlp", split_rows(RawPart([x], y), 2), hidden=(16, 8), tells_classes=False)
    linear = fit(prepared("linear", "diabetes"), plan_for("newton", prepared("linear", "diabetes"), l2=0.0)).outcome
    outcome = fit(ready, plan_for("lbfgs", ready, l2=1e-3, max_rounds=150)).outcome
    assert outcome.loss < 0.8 * linear.loss


def test_the_seed_alone_decides_where_a_net_starts() -> None:
    model = split_net().model
    assert first_parameters(model, seed=1).tobytes() == first_parameters(model, seed=1).tobytes()
    assert first_parameters(model, seed=1).tobytes() != first_parameters(model, seed=2).tobytes()


# --- privacy ------------------------------------------------------------------------------------------


def test_private_rounds_spend_what_the_accountant_says_and_stop_at_the_budget() -> None:
    ready = prepared("logistic", "breast_cancer")
    private = Privacy(clip=1.0, noise=1.5, delta=1e-5)
    batches = round(ready.counts.rows / 32)
    outcome = fit(ready, plan_for("sgd", ready, epochs=10, max_rounds=10**6, privacy=private)).outcome
    assert outcome.reason == "epochs"
    assert outcome.rounds == 10 * batches
    assert outcome.epsilon == pytest.approx(epsilon_of(1 / batches, 1.5, 10 * batches, 1e-5))
    assert outcome.is_approximate
    assert np.isnan(outcome.total)
    small = fit(
        ready, plan_for("sgd", ready, epochs=10, max_rounds=10**6, privacy=replace(private, epsilon=2.0))
    ).outcome
    assert small.reason == "privacy"
    assert small.epsilon <= 2.0 < epsilon_of(1 / batches, 1.5, small.rounds + 1, 1e-5)


def test_each_private_round_has_noise_of_its_own_and_of_the_right_size() -> None:
    """With a clip of next to nothing all that moves the parameters is noise, here of deviation 1."""
    ready = prepared("logistic", "breast_cancer")
    plan = plan_for("sgd", ready, l2=0.0, learning_rate=1.0, epochs=1000, privacy=Privacy(1e-9, 1e9, 1e-5))
    run, path = start(plan, ready.counts), []
    for _ in range(41):
        path.append(run.state.at)
        run = answer(run, ready)
    first = path[1] - path[0]
    assert np.std(first) * 32 == pytest.approx(1.0, rel=0.35)  # 31 numbers; batches of 32 rows
    later = path[2] - path[1] + 0.9 * (path[0] - path[1])  # without the momentum
    assert abs(np.corrcoef(first, later)[0, 1]) < 0.5


def test_a_private_step_is_divided_by_the_expected_rows_and_not_by_those_drawn() -> None:
    """How many were drawn is a secret, too."""
    ready = prepared("logistic", "breast_cancer")
    private = Privacy(clip=0.7, noise=1.3, delta=1e-5)
    run = start(plan_for("sgd", ready, l2=0.0, learning_rate=0.5, seed=9, privacy=private), ready.counts)
    ask = run.ask
    merged = merge(partial(ready.model, ask, rows, ready.scaler, part=n) for n, rows in enumerate(ready.parts))
    assert not ask.w.any()  # not even the share of a class
    noise = noise_vector(9, 0, ready.model.size, 1.3 * 0.7)
    batches = round(ready.counts.rows / 32)
    assert merged.rows != ready.counts.rows / batches
    moved = run.told(merged).state.at - ask.w
    expected = (totals(ready.model, merged).gradient + noise) * batches / ready.counts.weight
    np.testing.assert_allclose(moved, -0.5 * expected, rtol=1e-12)


def test_private_training_still_learns() -> None:
    ready = prepared("logistic", "breast_cancer")
    private = Privacy(clip=1.0, noise=1.0, delta=1e-5)
    outcome = fit(ready, plan_for("sgd", ready, epochs=10, max_rounds=10**6, privacy=private, seed=2**63)).outcome
    test_x, test_y = loaded("breast_cancer")[2:]
    assert np.mean(predict(ready.model, outcome.w, [test_x], ready.scaler).classes == test_y) > 0.9


def test_weighted_rows_cannot_be_private() -> None:
    x, y, _, _ = loaded("breast_cancer")
    ready = prepare("logistic", [RawPart([x], y, np.full(len(x), 3.0))])
    with pytest.raises(BadTraining, match="row weights would stretch"):
        fit(ready, plan_for("sgd", ready, privacy=Privacy(1.0, 1.0, 1e-5)))
