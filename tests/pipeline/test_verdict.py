"""The verdict: what it rests on, in which order, and that it never says more than was found."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdicts import PROBE_HALF_WIDTH, verdict
from mergeability.prediction.fits import Evidence, MethodFit
from mergeability.prediction.scorer import Scorer
from mergeability.prediction.validation.evaluate import PredictionResult
from mergeability.reporting.headline import headline

PAIR = pd.DataFrame([("a", "b", 0.4)], columns=["task_a", "task_b", "base_agreement"])
MODELS = pd.DataFrame(
    {"base_agreement": [0.2, 0.6], "unlabelled_images": [64, 64]}, index=pd.Index(["a", "b"], name="task")
)


def _analysis(pairs=PAIR, **parts):
    return Analysis("Mergeability of x", pairs, ["base_agreement"], **{"models": MODELS, **parts})


def _scorer(r_low=0.3, name="functional"):
    fits = {
        "ties": MethodFit([0.1], 0.7, 0.05, 0.9, 0.5, r_low, 45, 0.70, 0.92),
        "tsv": MethodFit([0.0], 0.8, 0.30, 0.9, 0.4, r_low, 45, 0.80, 0.90),
    }
    return Scorer(
        "norm_acc", list("klmn"), [Evidence(["base_agreement"], [0.0], [1.0], [0.0], fits, name, 0.01, 0.02)]
    )


def _scored(scorer, pairs=PAIR, **parts):
    return _analysis(pairs, scorer=scorer, scores=scorer.score(pairs), **parts)


def test_models_that_were_only_compared_get_no_number():
    found = verdict(_analysis())
    assert found.answer.startswith("No prediction")
    assert found.forecasts == ()
    assert found.recommended == ""
    assert not re.search(r"\d %|\d\.\d", found.answer)
    assert found.reasons == (
        "The base agrees with a's model on 20% of its unlabelled images.",
        "The base agrees with b's model on 60% of its unlabelled images.",
    )
    steps = " ".join(found.next_steps)
    assert "probe=64" in steps
    assert "fitted=" in steps
    assert "metric=functional" not in steps, "it was measured"


def test_a_measured_merge_goes_before_every_prediction():
    pairs = PAIR.assign(norm_acc_ties=0.9, norm_acc_tsv=0.85, probe_overlap_tsv=0.99)
    found = verdict(_scored(_scorer(), pairs, methods=["ties", "tsv"]))
    assert found.recommended == "ties"
    assert [one.expected for one in found.forecasts] == [0.9, 0.85]
    assert "90.0%" in found.answer
    assert found.choice == ("tsv comes second, 5.0 points lower.",)
    assert "Measured" in found.sureness[0]


def test_a_fitted_predictor_goes_before_the_probes_own_reading():
    pairs = PAIR.assign(probe_overlap_ties=0.5)
    found = verdict(_scored(_scorer(), pairs, merged=["ties"]))
    # The base's agreement of 0.4 is scaled to -0.2: ties 0.68 ± 0.05, tsv 0.8 ± 0.3, and the larger lower end wins.
    assert found.recommended == "ties"
    first = found.forecasts[0]
    assert (first.expected, first.low, first.high) == pytest.approx((0.68, 0.63, 0.73))
    assert "functional, fitted on 45 pairs" in first.source
    assert "from 63% to 73% for 90% of such pairs" in found.answer
    assert any("lost 1.00 points" in one and "lost 2.00" in one for one in found.choice)
    assert any("91%" in one for one in found.sureness), "the mean coverage"


def test_without_a_correlation_above_0_the_best_mean_is_taken_and_no_driver_named():
    found = verdict(_scored(_scorer(r_low=-0.2)))
    assert found.recommended == "tsv"
    assert "predicted no better than the mean outcome" in " ".join(found.sureness)
    assert "best mean is recommended for every pair" in " ".join(found.choice)
    assert "contribute most to the difference between this prediction" not in str(found)
    assert "contribute most to the difference between this prediction" in str(
        verdict(_scored(_scorer(r_low=0.2)))
    )


def test_a_probe_alone_is_read_directly():
    pairs = PAIR.assign(probe_overlap_ties=0.7, probe_overlap_tsv=0.75, probe_confidence_tsv=0.1)
    found = verdict(_analysis(pairs, merged=["ties", "tsv"]))
    assert found.recommended == "tsv"
    first = found.forecasts[0]
    assert (first.low, first.high) == pytest.approx((0.75 - PROBE_HALF_WIDTH, 0.75 + PROBE_HALF_WIDTH))
    assert "without labels" in " ".join(found.sureness)


def test_outside_the_range_of_the_fit_the_metrics_are_named_and_nothing_is_recommended():
    pairs = PAIR.assign(base_agreement=9.0)
    found = verdict(_scored(_scorer(), pairs))
    assert found.recommended == ""
    assert found.cautions[0] == "Outside the range of the fitted predictor: base_agreement."


def test_models_of_the_fit_are_recognised_by_their_weights_whatever_they_are_called():
    scorer = replace(_scorer(), models={"k": "11", "a": "22"})
    run = {"checkpoint_sha256": {"a": "33", "b": "11"}}
    found = verdict(_scored(scorer, run=run))
    assert found.cautions == (
        "b (there k) was part of the fit: the prediction is more accurate than for new models.",
    )
    assert verdict(_scored(scorer, run={"checkpoint_sha256": {"a": "33", "b": "44"}})).cautions == ()


def test_suspicious_images_are_repeated_for_the_models_concerned():
    missing = [
        "The base agrees with the model of 'a' on 10% of 64 images, close to the 10% expected by chance. …",
        "The base agrees with the model of 'z' on 10% of 64 images, close to the 10% expected by chance. …",
    ]
    assert verdict(_analysis(missing=missing)).cautions == (missing[0],)


def _suite(records=(), tables=None):
    tasks = list("abcd")
    pairs = pd.DataFrame(
        [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]], columns=["task_a", "task_b"]
    )
    pairs["norm_acc_ties"] = np.linspace(0.6, 0.8, 6)
    pairs["norm_acc_tsv"] = np.linspace(0.7, 0.9, 6)
    models = pd.DataFrame(
        {"base_accuracy": [0.1, 0.2, 0.3, 0.4], "finetuned_accuracy": [0.5] * 4}, index=tasks
    )
    result = PredictionResult(records=list(records), tables=tables or {}) if records else None
    return Analysis("t", pairs, ["m"], methods=["ties", "tsv"], models=models, prediction=result)


def _record(predictor, method, r, low, high):
    return {
        "predictor": predictor, "method": method, "target": "norm_acc", "situation": "both new", "protocol": "l2to",
        "r_beyond_mean": r, "r_beyond_mean_low": low, "r_beyond_mean_high": high,
    }  # fmt: skip


INTERVALS = pd.DataFrame(
    [("l2to", "norm_acc", "tsv", "mean", 0.15, 0.9, 0.9)],
    columns=["protocol", "target", "method", "predictor", "half_width", "coverage", "level"],
)


def test_a_suite_answers_for_new_pairs_by_the_best_mean_and_agrees_with_its_headline():
    analysis = _suite(
        [_record("mean", "tsv", None, None, None), _record("functional", "tsv", 0.7, 0.4, 0.9)],
        {"intervals": INTERVALS},
    )
    found = verdict(analysis)
    assert found.recommended == "tsv"
    assert (found.forecasts[0].expected, found.forecasts[0].low, found.forecasts[0].high) == pytest.approx(
        (0.8, 0.65, 0.95)
    )
    assert np.isnan(found.forecasts[1].low), "no interval is known for ties"
    assert headline(_suite())[1].startswith("tsv merges best on average")
    assert "The base alone reaches 20% of the accuracy of a's model, the lowest of 4." in found.reasons
    assert "The base alone reaches 80% of the accuracy of d's model, the highest of 4." in found.reasons
    assert any(one.startswith("functional") and "r = 0.70" in one for one in found.sureness)
    assert "based on 4 tasks" in found.cautions[0]


@pytest.mark.parametrize(("sign", "word"), [(1, "better"), (-1, "worse")])
def test_the_direction_is_that_of_the_pairs(sign, word):
    analysis = _suite([_record("known", "tsv", 0.7, 0.4, 0.9)], {"intervals": INTERVALS})
    pairs = analysis.pairs.assign(zero_shot_ratio=sign * analysis.pairs["norm_acc_tsv"])
    found = verdict(replace(analysis, pairs=pairs))
    assert found.reasons[0].startswith(f"These models merge {word} if the base is already nearly as accurate")


def test_evidence_that_predicts_nothing_gives_no_reasons():
    found = verdict(_suite([_record("functional", "tsv", 0.3, -0.1, 0.6)], {"intervals": INTERVALS}))
    assert found.reasons == ()
    assert any("no better than the mean outcome" in one for one in found.sureness)


def test_one_pair_of_many_can_be_asked_for_in_any_order():
    found = verdict(_suite(), ["d", "c"])
    assert found.answer.startswith("Merge by tsv: it keeps 90.0%")
    with pytest.raises(UserError, match="no merge of a, q"):
        verdict(_suite(), ["a", "q"])


def test_a_set_of_three_has_its_own_verdict():
    sets = pd.DataFrame([{"tasks": "a+b+c", "arity": 3, "norm_acc_ties": 0.6, "norm_acc_tsv": 0.7}])
    analysis = replace(_suite(), sets=sets, pairs=_suite().pairs[["task_a", "task_b"]])
    assert verdict(analysis).subject == "Merging a + b + c"
    assert verdict(analysis).recommended == "tsv"


def test_many_scored_pairs_are_summarised_and_those_outside_counted():
    pairs = pd.DataFrame(
        [("a", "b", 0.4), ("a", "c", 0.9), ("b", "c", 9.0)], columns=["task_a", "task_b", "base_agreement"]
    )
    found = verdict(_scored(_scorer(), pairs))
    # The base's agreement of 0.9 is scaled to 0.8: ties 0.78 ± 0.05, whose lower end is above that of tsv.
    assert "a + c should merge best, by ties (78.0%" in found.answer
    assert "a + b worst, by ties (68.0%)" in found.answer
    assert found.choice == ("ties is recommended for 2 of 2 pairs.", "1 of 3 pairs were not predicted.")
    assert {one.method: one.expected for one in found.forecasts} == pytest.approx({"tsv": 0.8, "ties": 0.73})


def test_sets_without_merged_pairs_are_what_the_verdict_is_about():
    sets = pd.DataFrame(
        [
            {"tasks": "a+b+c", "arity": 3, "norm_acc_ties": 0.6, "norm_acc_tsv": 0.7},
            {"tasks": "a+b+d", "arity": 3, "norm_acc_ties": 0.9, "norm_acc_tsv": 0.5},
        ]
    )
    analysis = replace(_suite(), sets=sets, pairs=_suite().pairs[["task_a", "task_b"]])
    found = verdict(analysis)
    assert found.subject == "2 sets of 4 models"
    assert found.answer == (
        "a + b + d merges best, by ties (90.0% of the fine-tuned accuracy); a + b + c worst, by tsv (70.0%)."
    )
    assert {one.method: one.expected for one in found.forecasts} == pytest.approx({"ties": 0.75, "tsv": 0.6})


def test_probed_pairs_come_before_the_set_of_all():
    pairs = pd.DataFrame(
        [("a", "b", 0.7), ("a", "c", 0.6), ("b", "c", 0.5)],
        columns=["task_a", "task_b", "probe_overlap_ties"],
    )
    sets = pd.DataFrame([{"tasks": "a+b+c", "arity": 3, "probe_overlap_ties": 0.4}])
    found = verdict(_analysis(pairs, sets=sets, merged=["ties"]))
    assert found.answer.startswith("a + b should merge best, by ties (70.0%")
    assert verdict(_analysis(pairs, sets=sets, merged=["ties"]), ["c", "a", "b"]).forecasts[0].expected == 0.4


def test_text_and_notebook_display_hold_every_sentence_and_escape_names():
    pairs = PAIR.assign(task_a="<a>", norm_acc_ties=0.9)
    found = verdict(_analysis(pairs, methods=["ties"], models=pd.DataFrame()))
    page = found._repr_html_()
    assert "<a>" not in page
    assert "&lt;a&gt;" in page
    for sentence in (found.answer, *found.sureness, *found.choice):
        assert sentence in str(found)
        assert sentence in page
    assert "ties" in str(found)
    assert "90.0%" in page


def _predicted_pair(**columns):
    """One of three pairs is predicted; `columns` holds target_method → its predicted outcome."""
    pairs = pd.DataFrame([("a", "b"), ("a", "c"), ("b", "c")], columns=["task_a", "task_b"])
    row = {"task_a": "a", "task_b": "b"}
    for name, value in columns.items():
        row |= {
            f"predicted_{name}": value,
            f"predicted_low_{name}": value - 0.1,
            f"predicted_high_{name}": value + 0.1,
        }
    accuracy = [
        {"target": name.rpartition("_")[0], "method": name.rpartition("_")[2], "predictor": "ridge",
         "n_measured": 2, "level": 0.9, "mae": 0.01, "mae_of_mean": 0.02, "r": 0.5} for name in columns
    ]  # fmt: skip
    return _analysis(
        pairs,
        predicted_pairs=pd.DataFrame([row]),
        predicted_accuracy=pd.DataFrame(accuracy),
        methods=["ties"],
    )


def test_a_prediction_of_another_target_is_taken_where_the_first_has_none():
    analysis = _predicted_pair(norm_acc_ties=np.nan, acc_ties=0.5, acc_tsv=0.6)
    found = verdict(analysis, ["b", "a"])
    assert (found.target, found.recommended) == ("acc", "tsv")
    assert [(one.expected, one.low, one.high) for one in found.forecasts] == [
        pytest.approx((0.6, 0.5, 0.7)),
        pytest.approx((0.5, 0.4, 0.6)),
    ]
    assert "expect 60.0%" in found.answer


def test_a_pair_that_could_not_be_predicted_gets_no_number():
    found = verdict(_predicted_pair(norm_acc_ties=np.nan), ["a", "b"])
    assert found.answer.startswith("No prediction")
    assert found.forecasts == ()


def test_the_set_that_is_asked_for_is_found_among_several():
    sets = pd.DataFrame(
        [
            {"tasks": "a+b+c", "arity": 3, "norm_acc_ties": 0.6, "norm_acc_tsv": 0.7},
            {"tasks": "a+b+d", "arity": 3, "norm_acc_ties": 0.9, "norm_acc_tsv": 0.5},
        ]
    )
    found = verdict(replace(_suite(), sets=sets), ["d", "b", "a"])
    assert found.recommended == "ties"
    assert found.forecasts[0].expected == 0.9
    with pytest.raises(UserError, match="no merge of a, c, d"):
        verdict(replace(_suite(), sets=sets), ["a", "c", "d"])


def test_the_only_predicted_pair_of_several_is_not_also_called_the_worst():
    pairs = pd.DataFrame([("a", "b", 0.4), ("a", "c", 9.0)], columns=["task_a", "task_b", "base_agreement"])
    found = verdict(_scored(_scorer(), pairs))
    assert found.answer == "a + b should merge best, by ties (68.0% of the fine-tuned accuracy)."
    assert found.choice == ("ties is recommended for 1 of 1 pairs.", "1 of 2 pairs were not predicted.")


def test_a_fit_that_knows_neither_its_coverage_nor_its_regret_says_nothing_of_them():
    scorer = _scorer()
    (tier,) = scorer.evidence
    fits = {name: replace(fit, coverage=None) for name, fit in tier.methods.items()}
    bare = replace(scorer, evidence=[replace(tier, methods=fits, regret=None, fixed_regret=None)])
    assert "contained the outcomes" in str(verdict(_scored(scorer)))
    found = verdict(_scored(bare))
    assert found.recommended == "ties"
    assert found.choice == ()
    assert "contained the outcomes" not in str(found)


@pytest.mark.parametrize("ratio", [0.5, np.nan])
def test_without_a_correlation_there_is_no_direction(ratio):
    analysis = _suite([_record("known", "tsv", 0.7, 0.4, 0.9)], {"intervals": INTERVALS})
    pairs = analysis.pairs.assign(zero_shot_ratio=ratio)
    found = verdict(replace(analysis, pairs=pairs))
    assert "These models merge" not in str(found)
    assert "The base alone reaches 20% of the accuracy of a's model, the lowest of 4." in found.reasons


CHOICE = pd.DataFrame(
    [("l2to", "norm_acc", "probe", 0.0125, 0.031)],
    columns=["protocol", "target", "predictor", "regret", "fixed_regret"],
)


@pytest.mark.parametrize(
    ("tables", "end"),
    [
        ({}, "on 64 unlabelled images of each task."),
        ({"method_choice": CHOICE}, "loses 1.25 points against each pair's best method, instead of 3.10."),
    ],
)
def test_a_probe_that_predicts_is_the_first_next_step(tables, end):
    analysis = _suite([_record("probe", "tsv", 0.7, 0.4, 0.9)], {"intervals": INTERVALS, **tables})
    first = verdict(analysis).next_steps[0]
    assert first.startswith("Probe this pair with probe=64: one merge per method")
    assert first.endswith(end)
