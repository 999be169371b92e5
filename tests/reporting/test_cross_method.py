"""Folders as analysis runs leave them, summarised."""

import json
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression

from mergeability.prediction import Additive, evaluate_predictors
from mergeability.reporting import cross_method_summary


@pytest.fixture
def folders(tmp_path):
    """One job a method; the outcome of `ta` is that of `ties` mirrored, so every sign differs."""
    generator = np.random.default_rng(0)
    pairs = pd.DataFrame(list(combinations("abcde", 2)), columns=["task_a", "task_b"])
    pairs["m"], pairs["n"] = generator.normal(size=(2, len(pairs)))
    outcome = 0.8 + 0.1 * pairs["m"] - 0.05 * pairs["n"]
    for job, (method, values) in enumerate({"ties": outcome, "ta": 1.5 - outcome}.items()):
        folder = tmp_path / str(job)
        folder.mkdir()
        own = pairs.assign(**{f"norm_acc_{method}": values})
        own.to_csv(folder / "pairs.csv", index=False)
        fits = {"ols": LinearRegression(), "additive": Additive()}
        evaluate_predictors(own, ["m", "n"], fits, targets=["norm_acc"]).save(folder)
    (tmp_path / "2").mkdir()
    return [tmp_path / str(job) for job in range(3)]


def test_one_row_a_method_with_outcomes_and_correlations(folders):
    summary = cross_method_summary(folders)
    methods = summary.methods.set_index("method")
    outcome = pd.read_csv(folders[0] / "pairs.csv")["norm_acc_ties"]
    assert methods.loc["ties", "mean_norm_acc"] == pytest.approx(outcome.mean())
    assert methods.loc["ties", "worst_norm_acc"] == pytest.approx(outcome.min())
    assert methods.loc["ta", "worst_norm_acc"] == pytest.approx(1.5 - outcome.max())
    assert methods["r_ols"].tolist() == pytest.approx([1.0, 1.0])
    assert "r_additive" in methods
    assert list(summary.methods["mean_norm_acc"]) == sorted(summary.methods["mean_norm_acc"], reverse=True)


def test_fingerprints_compare_metrics_but_no_task_effects(folders):
    agreement = cross_method_summary(folders).agreement
    assert agreement["predictor"].tolist() == ["ols"]
    assert agreement.loc[0, ["top5_overlap", "sign_agreement"]].tolist() == [1.0, 0.0]


def test_agreement_about_pairs_joins_them_whichever_task_comes_first(folders):
    path = folders[1] / "pairs.csv"
    ties, ta = pd.read_csv(folders[0] / "pairs.csv"), pd.read_csv(path)
    ta["norm_acc_ta"] = np.random.default_rng(1).normal(size=len(ta))
    # One pair is missing, the others come in another order, every second one with its tasks exchanged.
    other = ta.drop(index=3).sample(frac=1, random_state=0, ignore_index=True)
    other.loc[::2, ["task_a", "task_b"]] = other.loc[::2, ["task_b", "task_a"]].to_numpy()
    other.to_csv(path, index=False)
    both = pd.DataFrame({"ties": ties["norm_acc_ties"], "ta": ta["norm_acc_ta"]}).drop(index=3)
    found = cross_method_summary(folders).consistency
    assert len(found) == 1
    row = found.iloc[0]
    assert row[["target", "method_a", "method_b"]].tolist() == ["norm_acc", "ties", "ta"]
    assert row["n_pairs"] == 9
    assert row["rho"] == pytest.approx(spearmanr(both["ties"], both["ta"])[0])
    marks = np.array([[1.0, *(float(task in pair) for task in "abcde")] for pair in combinations("abcde", 2)])
    marks = np.delete(marks, 3, axis=0)
    left = both - marks @ np.linalg.lstsq(marks, both.to_numpy(), rcond=None)[0]
    assert row["rho_beyond"] == pytest.approx(spearmanr(left["ties"], left["ta"])[0])


def test_agreement_about_pairs_has_a_row_a_target_and_none_for_a_method_alone(folders):
    for folder, method in zip(folders, ("ties", "ta"), strict=False):
        pairs = pd.read_csv(folder / "pairs.csv")
        pairs.assign(**{f"acc_{method}": -pairs[f"norm_acc_{method}"]}).to_csv(
            folder / "pairs.csv", index=False
        )
    found = cross_method_summary(folders).consistency
    assert found["target"].tolist() == ["norm_acc", "acc"]
    assert found["rho"].tolist() == pytest.approx([-1, -1])
    assert cross_method_summary(folders[:1]).consistency.empty
    assert cross_method_summary(folders[2:]).consistency.empty


def test_unfinished_folders_are_named(folders):
    assert cross_method_summary(folders).missing == ("2 contains no pairs.csv: the run did not finish.",)
    empty = cross_method_summary(folders[2:])
    assert empty.methods.empty
    assert empty.agreement.empty


def test_a_method_run_twice_keeps_its_folder(folders):
    summary = cross_method_summary(
        [folders[0], folders[1], folders[0].rename(folders[0].with_name("x")), folders[1]]
    )
    assert sorted(summary.methods["method"]) == ["ta (1)", "ta (1)", "ties"]


def test_runs_without_prediction_still_have_outcomes(folders):
    for folder in folders[:2]:
        (folder / "prediction.json").write_text("[]")
        (folder / "coefficients.csv").unlink()
    summary = cross_method_summary(folders[:2])
    assert summary.methods["mean_norm_acc"].notna().all()
    assert not [name for name in summary.methods if name.startswith("r_")]
    assert summary.agreement.empty


def test_what_is_saved_can_be_read_back(folders, tmp_path):
    summary = cross_method_summary(folders)
    summary.save(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "summary.csv"), summary.methods)
    html = (tmp_path / "out" / "summary.html").read_text()
    assert re.search(r'<th scope="row">(<a [^>]*>)?ties(</a>)?</th>', html)
    assert "src=" not in html
    assert set(re.findall(r'href="([^#"][^"]*)"', html)) == set()
    markdown = (tmp_path / "out" / "summary.md").read_text()
    assert "| ties |" in markdown
    assert "did not finish" in markdown
    assert "## Do two methods agree on which pairs merge well?" in markdown
    assert "<h2>Do two methods agree on which pairs merge well?</h2>" in html
    assert "did not finish" in html
    assert len(pd.read_csv(tmp_path / "out" / "fingerprints.csv")) == 1
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "consistency.csv"), summary.consistency)
    cross_method_summary(folders[2:]).save(tmp_path / "empty")
    assert pd.read_csv(tmp_path / "empty" / "consistency.csv").empty


def _with_models(folders, *names):
    for folder, name in zip(folders, names, strict=True):
        (folder / "run.json").write_text(json.dumps({"config": {"model": {"name": name}}}))


def test_runs_of_several_models_are_grouped_by_model(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    pairs = pd.read_csv(folders[0] / "pairs.csv")
    pairs.assign(norm_acc_ties=pairs["norm_acc_ties"] - 0.3).to_csv(other / "pairs.csv", index=False)
    _with_models([*folders[:2], other], "small", "small", "large")
    summary = cross_method_summary([*folders[:2], other])
    assert summary.methods["model"].tolist() == ["large", "small", "small"]
    assert summary.methods["mean_norm_acc"][1] >= summary.methods["mean_norm_acc"][2], (
        "the best first, within a model"
    )
    assert set(summary.methods["method"]) == {"ties (large)", "ties (small)", "ta"}
    means = summary.models.set_index("method")
    assert list(means.columns) == ["small", "large"]
    assert means.loc["ties", "small"] == pytest.approx(pairs["norm_acc_ties"].mean())
    assert means.loc["ties", "large"] == pytest.approx(pairs["norm_acc_ties"].mean() - 0.3)
    assert np.isnan(means.loc["ta", "large"])
    row = summary.consistency.set_index(["method_a", "method_b"]).loc[("ties (small)", "ties (large)")]
    assert row["rho"] == pytest.approx(1)
    summary.save(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "summary_models.csv"), summary.models)
    assert (
        "<h2>Which method gives the best merges for each model?</h2>"
        in (tmp_path / "out" / "summary.html").read_text()
    )


def test_seeds_of_a_model_are_averaged_and_named_by_folder(folders, tmp_path):
    second, third = tmp_path / "seed-1", tmp_path / "wide"
    pairs = pd.read_csv(folders[0] / "pairs.csv")
    for folder, shift in ((second, 0.1), (third, 0.0)):
        folder.mkdir()
        pairs.assign(norm_acc_ties=pairs["norm_acc_ties"] + shift).to_csv(folder / "pairs.csv", index=False)
    _with_models([folders[0], second, third], "small", "small", "large")
    summary = cross_method_summary([folders[0], second, third])
    assert set(summary.methods["method"]) == {"ties (0)", "ties (seed-1)", "ties (large)"}
    means = summary.models.set_index("method")
    assert means.loc["ties", "small"] == pytest.approx(pairs["norm_acc_ties"].mean() + 0.05)


def test_runs_of_one_model_are_not_grouped(folders, tmp_path):
    _with_models(folders[:2], "small", "small")
    summary = cross_method_summary(folders[:2])
    assert "model" not in summary.methods
    summary.save(tmp_path / "out")
    assert not (tmp_path / "out" / "summary_models.csv").exists()


def test_a_run_without_outcomes_is_named(folders):
    path = folders[1] / "pairs.csv"
    pd.read_csv(path).drop(columns="norm_acc_ta").to_csv(path, index=False)
    summary = cross_method_summary(folders)
    assert "1 contains no outcomes." in summary.missing
    assert "0 contains no outcomes." not in summary.missing
    assert summary.methods["method"].tolist() == ["ties"]
