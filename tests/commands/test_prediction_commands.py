"""Predicting from the command line: a ready table, a fitted predictor for other models, and bad tables."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

GOLDEN = Path(__file__).parent.parent / "golden"
TASKS = "abcdefg"
METRICS = ("stable_rank", "task_vector_cosine_similarity", "activation_dot_product")


def table() -> pd.DataFrame:
    """Seven tasks, 21 pairs; `ties` follows the rank, `ta` who is in the pair."""
    generator = np.random.default_rng(3)
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    frame["stable_rank"] = generator.uniform(1, 2, len(frame))
    frame["task_vector_cosine_similarity"] = generator.uniform(-0.5, 0.5, len(frame))
    frame["activation_dot_product"] = generator.normal(size=len(frame))
    effects = dict(zip(TASKS, generator.normal(0, 0.1, len(TASKS)), strict=True))
    frame["norm_acc_ties"] = (
        0.6 + 0.2 * (frame["stable_rank"] - 1) + 0.001 * generator.normal(size=len(frame))
    )
    frame["norm_acc_ta"] = 0.7 + frame["task_a"].map(effects) + frame["task_b"].map(effects)
    return frame


@pytest.fixture
def pairs() -> pd.DataFrame:
    return table()


# The whole study with the quick predictors; and next to none of it, where something else is tested.
STUDY = ("predictor=[mean,additive,ridge,ols]", "prediction.permutations=19")
LITTLE = ("predictor=[mean,ols]", "prediction.permutations=0", "prediction.ablation=false")


def run_analysis(command, root, frame, *arguments, name="run", study=LITTLE):
    path = root / f"{name}.csv"
    frame.to_csv(path, index=False)
    folder = root / name
    where = (f"paths.root={root}/outputs", f"hydra.run.dir={folder}", "logger=csv")
    return command("analyze", "suite=table", f"suite.table={path}", *study, *where, *arguments), folder


@pytest.fixture
def analyse(command, tmp_path, pairs):
    """Analyse a table in the folder of the test."""

    def run(frame=None, *arguments, name="run"):
        return run_analysis(command, tmp_path, pairs if frame is None else frame, *arguments, name=name)

    return run


@pytest.fixture(scope="module")
def studied(command, tmp_path_factory):
    """The whole study of the table: how it ended, and its folder."""
    return run_analysis(command, tmp_path_factory.mktemp("studied"), table(), study=STUDY)


def refused(ended, *parts):
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    for part in parts:
        assert part in ended.output, ended.output


def test_a_table_alone_gets_the_whole_study(studied):
    ended, folder = studied
    assert ended.code == 0, ended.output
    records = json.loads((folder / "prediction.json").read_text())
    r = {
        (one["protocol"], one["method"], one["predictor"]): one
        for one in records
        if one["target"] == "norm_acc"
    }
    assert r["loto", "ties", "ols"]["r_mean"] > 0.99
    assert r["l2to", "ties", "ridge"]["r_beyond_mean"] > 0.9
    assert r["loto", "ta", "additive"]["r_mean"] > 0.99
    tested = pd.read_csv(folder / "prediction/relabelling.csv").set_index("method")
    assert tested.loc["ties", "p_beyond"] == pytest.approx(1 / 20)
    assert tested.loc["ta", "gain"] < 0.5
    variance = pd.read_csv(folder / "prediction/variance.csv").set_index("method")
    assert variance.loc["ta", "task_effects"] > 0.999
    text = (folder / "report.html").read_text()
    assert "For ta the metrics add nothing beyond task effects" in text
    assert "The metrics improve predictions beyond task effects for ties" in text


def test_a_second_run_finds_the_study_and_other_options_do_not(studied, command):
    first, folder = studied
    second, again = run_analysis(command, folder.parent, table(), name="again", study=STUDY)
    third, _ = run_analysis(
        command, folder.parent, table(), "prediction.permutations=9", name="third", study=STUDY
    )
    assert [one.code for one in (first, second, third)] == [0, 0, 0]
    counts = [json.loads((one / "run.json").read_text()) for one in (folder, again, folder.parent / "third")]
    assert [count["computed"].get("study", 0) for count in counts] == [1, 0, 1]
    assert (folder / "prediction.json").read_bytes() == (again / "prediction.json").read_bytes()
    assert (folder / "prediction/variance.csv").read_bytes() == (
        again / "prediction/variance.csv"
    ).read_bytes()


def test_methods_and_rows_can_be_chosen(analyse, pairs):
    holey = pairs.assign(norm_acc_ta=pairs["norm_acc_ta"].where(pairs.index != 4))
    ended, folder = analyse(holey, "suite.methods=[ties]", "suite.rows=complete")
    assert ended.code == 0, ended.output
    records = json.loads((folder / "prediction.json").read_text())
    assert {(one["method"], one["n_pairs"]) for one in records} == {("ties", 21)}
    ended, folder = analyse(holey, "suite.rows=complete", name="both")
    records = json.loads((folder / "prediction.json").read_text())
    assert {(one["method"], one["n_pairs"]) for one in records} == {("ties", 20), ("ta", 20)}
    assert "1 pair left out for an empty cell (a-f)" in (folder / "report.html").read_text()
    refused(analyse(None, "suite.methods=[tsv]", name="none")[0], "contains no outcomes of tsv", "ties, ta")


def test_protocols_and_targets_can_be_chosen(analyse):
    ended, folder = analyse(None, "prediction.protocols=[halves]", "prediction.targets=[norm_acc]")
    assert ended.code == 0, ended.output
    records = json.loads((folder / "prediction.json").read_text())
    assert {(one["protocol"], one["situation"]) for one in records} == {("halves", "both new")}
    refused(analyse(None, "prediction.protocols=[random]", name="wrong")[0], "loto, l2to, halves", "random")


def test_a_fitted_predictor_scores_bare_checkpoints_and_abstains_outside_its_range(
    analyse, command, tmp_path, pairs
):
    _, folder = analyse(pairs.drop(columns="activation_dot_product"))
    models = ", ".join(f'{name}: "{GOLDEN}/{name}.safetensors"' for name in ("task0", "task1", "task2"))
    golden = ("suite=checkpoints", f"suite.base={GOLDEN}/base.safetensors", f"suite.models={{{models}}}")
    where = (f"paths.root={tmp_path}/outputs", "logger=csv", f"fitted={folder}")
    strict = command("analyze", *golden, *where, "margin=0", f"hydra.run.dir={tmp_path}/strict")
    wide = command("analyze", *golden, *where, "margin=1000", f"hydra.run.dir={tmp_path}/wide")
    assert (strict.code, wide.code) == (0, 0), strict.output + wide.output
    measured = pd.read_csv(tmp_path / "wide/pairs.csv")
    scores = pd.read_csv(tmp_path / "wide/scores.csv", keep_default_na=True)
    fit = json.loads((folder / "fitted.json").read_text())["evidence"][0]
    for method in ("ties", "ta"):
        low, high = np.array(fit["lowest"]), np.array(fit["highest"])
        scaled = 2 * (measured[fit["metrics"]].to_numpy() - low) / (high - low) - 1
        expected = fit["methods"][method]["intercept"] + scaled @ fit["methods"][method]["weights"]
        np.testing.assert_allclose(scores[f"score_{method}"], expected, rtol=1e-9)
    assert scores["recommended"].isin(["ties", "ta"]).all()
    bare = pd.read_csv(tmp_path / "strict/scores.csv")
    inside = measured["stable_rank"].between(fit["lowest"][0], fit["highest"][0]) & measured[
        "task_vector_cosine_similarity"
    ].between(fit["lowest"][1], fit["highest"][1])
    assert (bare["abstains"].isna() == inside).all()
    assert (bare["score_ties"].notna() == inside).all()
    assert "Will these models merge well?" in (tmp_path / "wide/report.html").read_text()


def test_a_fitted_predictor_meets_the_outcomes_of_another_table(studied, analyse, pairs):
    _, folder = studied
    shifted = pairs.assign(norm_acc_ties=pairs["norm_acc_ties"] - 0.05)
    ended, other = analyse(shifted, f"fitted={folder}/fitted.json", "predictor=none", name="other")
    assert ended.code == 0, ended.output
    text = (other / "report.html").read_text()
    assert "These pairs were also merged" in text
    scores = pd.read_csv(other / "scores.csv")
    assert np.corrcoef(scores["score_ties"], shifted["norm_acc_ties"])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("There is no fitted predictor at", "fitted=outputs/demo")),
        ("{", ("is not a fitted predictor",)),
        ('{"format": 99}', ("format 99",)),
        (
            '{"format": 1, "target": "norm_acc", "tasks": [], "evidence": [{}]}',
            ("is not a fitted predictor",),
        ),
    ],
)
def test_what_is_no_fitted_predictor_is_refused_before_anything_is_measured(
    analyse, tmp_path, content, parts
):
    path = tmp_path / "fitted.json"
    if content is not None:
        path.write_text(content)
    ended, folder = analyse(None, f"fitted={path}")
    refused(ended, *parts)
    assert not (folder / "report.html").exists()


def spoil(column, value, row=2):
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


BAD = {
    "range": (
        spoil("task_vector_cosine_similarity", 1.02),
        ("contains 1.02 for a and d", "outside the metric's range [-1, 1]"),
    ),
    "text": (spoil("stable_rank", "high"), ("Expected numbers in column stable_rank", "row 3", "high")),
    "infinite": (spoil("norm_acc_ta", np.inf), ("infinite in row 3",)),
    "both orders": (
        lambda frame: pd.concat(
            [frame, frame.iloc[:1].rename(columns={"task_a": "task_b", "task_b": "task_a"})]
        ),
        ("more than once", "order does not matter"),
    ),
    "twice": (lambda frame: pd.concat([frame, frame.iloc[:1]]), ("more than once",)),
    "one task": (lambda frame: frame.iloc[:1].assign(task_b="a"), ("a pair of 'a' with itself",)),
    "three tasks": (
        lambda frame: frame[frame["task_a"].isin(["a", "b"]) & frame["task_b"].isin(["b", "c"])],
        ("at least 4", "has 3"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_gets_one_sentence_and_leaves_no_results(analyse, pairs, name):
    change, parts = BAD[name]
    ended, folder = analyse(change(pairs.copy()))
    refused(ended, *parts)
    assert not (folder / "prediction.json").exists()


def test_missing_cells_and_constant_columns_are_left_out_and_named(analyse, pairs):
    pairs.loc[[1, 5], "stable_rank"] = np.nan
    pairs["activation_dot_product"] = 3.0
    ended, folder = analyse(pairs)
    assert ended.code == 0, ended.output
    text = (folder / "report.html").read_text()
    assert "2 pairs left out for an empty cell (a-c, a-g)" in text
    assert "activation_dot_product is constant" in text
    records = json.loads((folder / "prediction.json").read_text())
    assert {one["n_pairs"] for one in records} == {19}


def test_parquet_is_read_as_well(command, tmp_path, pairs):
    path, folder = tmp_path / "pairs.parquet", tmp_path / "run"
    pairs.to_parquet(path)
    quick = ("predictor=[mean,ols]", "prediction.permutations=0", "prediction.ablation=false", "logger=csv")
    where = (f"paths.root={tmp_path}/outputs", f"hydra.run.dir={folder}")
    ended = command("analyze", "suite=table", f"suite.table={path}", *quick, *where)
    assert ended.code == 0, ended.output
    assert (folder / "prediction.json").exists()
