"""Nothing of a validation row may reach a fit: of any predictor, protocol, scaling or nested choice."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mergeability.prediction import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut, study_predictions
from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.base import traits
from mergeability.prediction.study import StudySettings
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.folds import fit_folds, make_folds
from mergeability.prediction.validation.protocols import Split

CONF = Path(__file__).parents[3] / "conf"
METRICS = ["first", "second", "third"]
CHEAP = ["predictor.trees.trees=10", "predictor.mlp.epochs=10", "predictor.pearson.max_steps=60"]
NAMES = sorted(path.stem for path in (CONF / "predictor").glob("*.yaml") if path.stem not in ("all", "none"))


@pytest.fixture(scope="module")
def predictors():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("analyze", ["predictor=all", *CHEAP])
    return instantiate(cfg.predictor, _convert_="all")


CLOSED = ["additive", "dyadic", "mean", "ols", "ridge"]


@dataclass(frozen=True)
class Leaking(LeaveOneTaskOut):
    """A protocol with a planted leak: the validated pairs are fitted as well."""

    def folds(self, groups):
        for fold in super().folds(groups):
            everything = np.sort(np.concatenate([fold.training, fold.validation]))
            yield Split(fold.held_out, everything, fold.validation)


def _pairs():
    """Seven tasks, whose pairs' outcomes listen to one metric and to task effects."""
    generator = np.random.default_rng(8)
    frame = pd.DataFrame(list(combinations("abcdefg", 2)), columns=["task_a", "task_b"])
    for metric in METRICS:
        frame[metric] = generator.normal(size=21)
    effects = dict(zip("abcdefg", generator.normal(size=7), strict=True))
    common = frame["task_a"].map(effects) + frame["task_b"].map(effects)
    frame["acc_ties"] = 0.7 + 0.05 * common + 0.05 * frame["first"] + 0.02 * generator.normal(size=21)
    frame["acc_average"] = generator.uniform(size=21)
    return frame


def _touching(frame, held_out):
    return frame["task_a"].isin(held_out) | frame["task_b"].isin(held_out)


def _garbage(frame, held_out):
    """Random numbers a thousand times too large in every metric and outcome."""
    generator = np.random.default_rng(1)
    rows = _touching(frame, held_out)
    return frame.assign(
        **{
            name: frame[name].where(~rows, 1e3 * generator.normal(size=len(frame)))
            for name in [*METRICS, "acc_ties", "acc_average"]
        }
    )


def _copied(frame, held_out):
    """The outcome itself, as a metric of the left-out pairs."""
    rows = _touching(frame, held_out)
    return frame.assign(third=frame["third"].where(~rows, 100 * frame["acc_ties"]))


CLEAN = {}


def _clean(name, predictor, protocol, label):
    """Return the state of the fits on the clean table; kept, since every way of spoiling is compared with it."""
    key = name, repr(protocol), label
    if key not in CLEAN:
        CLEAN[key] = _state(predictor, _pairs(), protocol, label)
    return CLEAN[key]


def _state(predictor, frame, protocol, label):
    """All that the fits of one fold learned: predictions of fixed rows, chosen strengths, weights."""
    table = PairTable.validate(frame, METRICS, ["acc_ties", "acc_average"])
    folds = make_folds(table, ["ties", "average"], ["acc"], protocol).folds
    found = {}
    for fold, model in zip(folds, fit_folds(predictor, folds), strict=True):
        if fold.split.label != label:
            continue
        width = fold.shared.features(traits(predictor).inputs).shape[1]
        probe = np.random.default_rng(2).uniform(-1, 1, size=(9, width))
        found[fold.method, "predictions"] = model.predict(probe)
        for name in ("coef_", "intercept_", "strength_", "metric_strength_", "selected_"):
            if hasattr(model, name):
                found[fold.method, name] = np.ravel(getattr(model, name)).astype(float)
    assert len(found) >= 2, "the fold must exist for both outcomes"
    return found


def _differs(first, second):
    assert set(first) == set(second)
    return any(
        first[key].shape != second[key].shape
        or not np.allclose(first[key], second[key], rtol=1e-6, atol=1e-9, equal_nan=True)
        for key in first
    )


def test_every_predictor_of_the_configuration_is_looked_at(predictors):
    assert sorted(predictors) == NAMES
    assert {name for name in NAMES if traits(predictors[name]).closed_form} >= set(CLOSED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoil", [_garbage, _copied])
def test_pairs_of_a_left_out_task_move_nothing_of_its_fold(predictors, name, spoil):
    clean = _clean(name, predictors[name], LeaveOneTaskOut(), "c")
    spoiled = _state(predictors[name], spoil(_pairs(), {"c"}), LeaveOneTaskOut(), "c")
    assert not _differs(clean, spoiled)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("spoil", [_garbage, _copied])
def test_pairs_of_two_left_out_tasks_move_nothing_of_their_fold(predictors, name, spoil):
    frame = _pairs()
    for protocol, held_out in ((LeaveTwoTasksOut(), ("c", "e")), (DisjointHalves(repeats=1), None)):
        held_out = held_out or next(iter(protocol.folds(frame[["task_a", "task_b"]].to_numpy()))).held_out
        label = "+".join(held_out)
        clean = _clean(name, predictors[name], protocol, label)
        spoiled = _state(predictors[name], spoil(frame, set(held_out)), protocol, label)
        assert not _differs(clean, spoiled)


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_leak_is_seen_in_every_predictor(predictors, name):
    """The same comparison, of a protocol that fits what it validates: it must find the difference."""
    clean = _clean(name, predictors[name], Leaking(), "c")
    spoiled = _state(predictors[name], _garbage(_pairs(), {"c"}), Leaking(), "c")
    # Nothing of a probe is fitted, so nothing can leak into it.
    assert _differs(clean, spoiled) or traits(predictors[name]).inputs == "raw"


@pytest.mark.parametrize("name", ["ridge", "lasso", "elastic_net", "ols", "dyadic"])
def test_a_planted_copy_of_the_outcome_is_seen_where_metrics_are_weighed(predictors, name):
    clean = _clean(name, predictors[name], Leaking(), "c")
    spoiled = _state(predictors[name], _copied(_pairs(), {"c"}), Leaking(), "c")
    assert _differs(clean, spoiled)


@pytest.mark.parametrize("protocol", [LeaveOneTaskOut(), LeaveTwoTasksOut()], ids=["loto", "l2to"])
def test_inner_folds_hold_rows_of_the_training_side_alone_and_separate_tasks_once_more(protocol):
    table = PairTable.validate(_pairs(), METRICS, ["acc_ties"])
    for fold in make_folds(table, ["ties"], ["acc"], protocol).folds:
        ends = fold.shared.rows.ends[fold.split.training]
        inner = fold.shared.inner
        assert len(inner) == (6 if protocol.name == "loto" else 10)
        for training, validation in inner:
            assert max(*training, *validation) < len(ends)
            left_out = set.intersection(*(set(pair) for pair in ends[validation]))
            assert len(left_out) == (1 if protocol.name == "loto" else 2)
            assert not left_out & set(ends[training].ravel())
            # The task of the outer fold is in neither side.
            assert not set(fold.split.held_out) & set(ends.ravel())


@pytest.mark.parametrize(("name", "attribute"), [("ridge", "strength_"), ("dyadic", "metric_strength_")])
@pytest.mark.parametrize("protocol", [LeaveOneTaskOut(), LeaveTwoTasksOut()], ids=["loto", "l2to"])
def test_the_nested_strength_would_betray_a_leak_and_does_not_move(predictors, name, attribute, protocol):
    """A metric that tells the outcome of the validated pairs alone would ask for a weaker penalty."""
    frame = _pairs()
    held_out = {"c"} if protocol.name == "loto" else {"c", "e"}
    label = "+".join(sorted(held_out))
    frame["acc_average"] = frame["third"] * 1e-3 + np.random.default_rng(0).normal(size=21)
    clean, copied = (
        _state(predictors[name], one, protocol, label) for one in (frame, _copied(frame, held_out))
    )
    for method in ("ties", "average"):
        np.testing.assert_array_equal(clean[method, attribute], copied[method, attribute])
    # Told of them everywhere, the strength does move: the choice is sensitive to what a leak would bring.
    everywhere = frame.assign(third=1e3 * frame["acc_average"])
    told = _state(predictors[name], everywhere, protocol, label)
    assert told["average", attribute] < clean["average", attribute]


def test_known_accuracies_are_no_feature_and_their_baseline_does_not_see_left_out_outcomes(predictors):
    frame = _pairs()
    own = dict(zip("abcdefg", np.linspace(0.6, 0.9, 7), strict=True))
    known = frame.assign(finetuned_accuracy=(frame["task_a"].map(own) + frame["task_b"].map(own)) / 2)
    settings = StudySettings(targets=("acc",), permutations=0, seeds=0, ablation=False)
    few = {name: predictors[name] for name in ("additive", "ols")}
    without, with_it = (study_predictions(one, METRICS, few, settings=settings) for one in (frame, known))
    assert [r for r in with_it.records if r["predictor"] != "finetuned"] == without.records
    assert {r["protocol"] for r in with_it.records if r["predictor"] == "finetuned"} == {"loto", "l2to"}
    rows = _touching(known, {"c"})
    for column in ("acc_ties", "acc_average"):
        known.loc[rows, column] = 1e3
    spoiled = study_predictions(known, METRICS, few, settings=settings)
    clean, dirty = (
        one.predictions.query("predictor == 'finetuned' and protocol == 'loto'") for one in (with_it, spoiled)
    )
    first, second = (f.query("held_out == 'c'")["predicted"].to_numpy() for f in (clean, dirty))
    np.testing.assert_allclose(first, second, rtol=1e-12)
    first, second = (f.query("held_out == 'd'")["predicted"].to_numpy() for f in (clean, dirty))
    assert np.abs(first - second).max() > 1, "the garbage must matter where it may"


def test_outcomes_of_one_method_do_not_reach_the_fits_of_another(predictors):
    """Outcomes of the same pairs are solved together."""
    frame = _pairs()
    few = {name: predictors[name] for name in ("additive", "ridge", "dyadic", "pearson")}
    first, second = (
        evaluate_predictors(one, METRICS, few, ["ties", "average"], ["acc"])
        .predictions.query("method == 'ties'")["predicted"]
        .to_numpy()
        for one in (frame, frame.assign(acc_average=1e3 * frame["first"]))
    )
    np.testing.assert_allclose(first, second, rtol=1e-9)
