"""Settings of fine-tuning side by side: changes, intervals, choice of a strength, and what the page says first."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mergeability.errors import UserError
from mergeability.prediction.validation.intervals import student_interval
from mergeability.reporting import figures
from mergeability.reporting.ablation.comparison import ALL_METHODS, compare, winners
from mergeability.reporting.ablation.page import headline, trade_off_table
from mergeability.reporting.ablation.summary import write_summary

TASKS = ("a", "b", "c", "d")
PAIRS = list(combinations(TASKS, 2))
METHODS = ("average", "ties")


def written(
    folder: Path,
    setting: str,
    seed: int,
    accuracy: dict[str, np.ndarray],
    own: np.ndarray,
    suite: str = "mini",
    stable: dict[str, int] | None = None,
    distance: float | None = 1.0,
    variant: str | None = None,
    **settings: object,
) -> Path:
    """Leave what an analysis leaves; `accuracy` gives (pairs, 2) values for each method."""
    folder = folder / setting / f"seed-{seed}"
    (folder / "prediction").mkdir(parents=True)
    penalty, _, strength = setting.rpartition("-")
    trained = f"{setting}+{variant}" if variant else setting
    config = {
        "suite": {"trained": f"{trained}/seed-{seed}", "name": suite},
        # With λ = 0 the configuration still names a penalty.
        "reg": {"name": "l2_to_init" if penalty == "none" else penalty, "lambda": float(strength)},
        "seed": seed,
        "model": {"name": "clip_mini"},
        "metric": {} if distance is None else {"distance": {}},
        "variant": variant,
        "merge": {method: {"alpha": 1.0} for method in accuracy},
        **settings,
    }
    (folder / "run.json").write_text(json.dumps({"config": config}))
    pd.DataFrame({"task": TASKS, "finetuned_accuracy": own}).to_csv(folder / "models.csv", index=False)
    pairs = pd.DataFrame(PAIRS, columns=["task_a", "task_b"])
    for method, values in accuracy.items():
        for target, scaled in (("acc", values), ("norm_acc", values / 0.8)):
            pairs[f"{target}_{method}"] = scaled.mean(axis=1)
            pairs[f"{target}_{method}_a"], pairs[f"{target}_{method}_b"] = scaled.T
    if distance is not None:
        pairs["distance"] = distance + np.arange(len(PAIRS))
    pairs.to_csv(folder / "pairs.csv", index=False)
    if stable:
        rows = [
            {"target": "norm_acc", "predictor": "ridge", "metric": m, "sign": s, "stable": s != 0}
            for m, s in stable.items()
        ]
        pd.DataFrame(rows).to_csv(folder / "prediction" / "stable_metrics.csv", index=False)
    return folder


@pytest.fixture
def values() -> dict:
    """Accuracies of three seeds, plain and two strengths: what the seed does is large, what the penalty does small."""
    random = np.random.default_rng(0)
    found = {}
    for seed in range(3):
        plain = {m: random.uniform(0.5, 0.7, (len(PAIRS), 2)) for m in METHODS}
        own = random.uniform(0.75, 0.85, len(TASKS))
        found["none-0", seed] = (plain, own)
        for setting, gain, cost in (("l2_to_init-0.1", 0.03, 0.01), ("l2_to_init-1", -0.05, 0.2)):
            noise = random.normal(scale=0.002, size=(len(PAIRS), 2))
            found[setting, seed] = ({m: v + gain + noise for m, v in plain.items()}, own - cost)
    return found


@pytest.fixture
def folders(tmp_path, values) -> list[Path]:
    return [written(tmp_path, setting, seed, *found) for (setting, seed), found in values.items()]


def changed(found: pd.DataFrame, setting: str, method: str | None = None, target: str = "acc") -> pd.Series:
    rows = found[found["setting"] == setting]
    if method is not None:
        rows = rows[(rows["method"] == method) & (rows["target"] == target)]
    (index,) = rows.index
    return rows.loc[index]


def test_changes_are_paired_by_seed_with_students_interval(folders, values):
    found = compare(folders)
    for setting in ("l2_to_init-0.1", "l2_to_init-1"):
        for target, scale in (("acc", 1), ("norm_acc", 0.8)):
            row = changed(found.merges, setting, "ties", target)
            now, plain = (
                np.array([values[name, seed][0]["ties"].mean() / scale for seed in range(3)])
                for name in (setting, "none-0")
            )
            witness = stats.ttest_rel(now, plain).confidence_interval(0.95)
            assert row["change"] == pytest.approx((now - plain).mean())
            assert (row["low"], row["high"]) == pytest.approx((witness.low, witness.high))
            assert (row["value"], row["plain"], row["seeds"]) == pytest.approx((now.mean(), plain.mean(), 3))
        own = changed(found.models, setting)
        cost = 0.01 if setting.endswith("0.1") else 0.2
        assert own["change"] == pytest.approx(-cost)
        assert own["high"] - own["low"] == pytest.approx(0, abs=1e-9), "the same in every seed and task"


def test_intervals_over_tasks_pair_each_task_with_itself(folders, values):
    row = changed(compare(folders).merges, "l2_to_init-0.1", "average")
    changes = {task: [] for task in TASKS}
    for seed in range(3):
        difference = values["l2_to_init-0.1", seed][0]["average"] - values["none-0", seed][0]["average"]
        for pair, both in zip(PAIRS, difference, strict=True):
            for task, one in zip(pair, both, strict=True):
                changes[task].append(one)
    means = np.array([np.mean(changes[task]) for task in TASKS])
    witness = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (row["task_low"], row["task_high"]) == pytest.approx((witness.low, witness.high))


def test_the_mean_over_methods_is_of_methods_that_every_run_has(tmp_path, folders, values):
    found = compare(folders)
    both = changed(found.merges, "l2_to_init-0.1", ALL_METHODS)
    apart = [changed(found.merges, "l2_to_init-0.1", method)["value"] for method in METHODS]
    assert both["value"] == pytest.approx(np.mean(apart))
    accuracy, own = values["none-0", 0]
    more = written(tmp_path / "more", "subspace-1", 0, {**accuracy, "tsv": np.ones((len(PAIRS), 2))}, own)
    found = compare([*folders, more])
    assert changed(found.merges, "subspace-1", ALL_METHODS)["change"] == pytest.approx(0)
    assert any("excludes tsv, which only some of the runs used" in sentence for sentence in found.missing)


def test_winners_beat_plain_in_both_outcomes_outside_the_seeds_interval(folders):
    found = winners(compare(folders).merges)
    assert set(found["setting"]) == {"l2_to_init-0.1"}
    assert set(found["method"]) == {*METHODS, ALL_METHODS}
    assert found["acc"].is_monotonic_decreasing


def test_one_outcome_alone_does_not_win(tmp_path, values):
    """Worse models make merges look better beside them: normalised accuracy up, accuracy not."""
    folders = []
    for seed in range(3):
        plain, own = values["none-0", seed]
        folders.append(written(tmp_path, "none-0", seed, plain, own))
        folder = written(tmp_path, "subspace-1", seed, plain, own / 2)
        pairs = pd.read_csv(folder / "pairs.csv")
        normalised = [name for name in pairs.columns if name.startswith("norm_acc")]
        pairs[normalised] += 0.1 + 0.001 * seed
        pairs.to_csv(folder / "pairs.csv", index=False)
        folders.append(folder)
    found = compare(folders)
    assert changed(found.merges, "subspace-1", "ties", "norm_acc")["low"] > 0
    assert winners(found.merges).empty
    assert headline(found)[0].startswith("0 of 2 combinations")


def test_a_strength_is_chosen_without_the_seed_it_is_judged_on(tmp_path):
    """By hand: each strength is best for one seed by .3 and .1 worse elsewhere, so every choice made on the others loses."""
    folders = []
    flat = np.full((len(PAIRS), 2), 0.5)
    for seed in range(3):
        folders.append(written(tmp_path, "none-0", seed, {"ties": flat - 0.2}, np.full(4, 0.8)))
        for strength in range(3):
            gain = 0.3 if strength == seed else -0.1
            folders.append(
                written(tmp_path, f"subspace-{strength + 1}", seed, {"ties": flat + gain}, np.full(4, 0.8))
            )
    choice = compare(folders).choices.set_index("penalty").loc["subspace"]
    # On two seeds the strengths that are best for them have a mean gain of .1 each, and on the third one -.1: +.1 on plain.
    assert choice["acc"] == pytest.approx(0.1)
    assert choice["seeds"] == 3
    assert "3" not in choice["strengths"].split(", ")[2], "the third seed did not choose for itself"


def test_own_accuracy_counts_in_the_choice(tmp_path):
    folders = []
    flat = np.full((len(PAIRS), 2), 0.5)
    for seed in range(2):
        folders.append(written(tmp_path, "none-0", seed, {"ties": flat}, np.full(4, 0.8)))
        # A tenth more merged accuracy for two tenths of the models' own: not worth it.
        folders.append(written(tmp_path, "subspace-1", seed, {"ties": flat + 0.1}, np.full(4, 0.6)))
    choice = compare(folders).choices.set_index("penalty").loc["subspace"]
    assert choice["strengths"] == "0, 0"
    assert choice["acc"] == choice["finetuned_accuracy"] == 0


def test_metrics_move_in_standard_deviations_of_plains_pairs_and_keep_a_sign_all_seeds_agree_on(
    tmp_path, values
):
    folders = []
    for seed in range(2):
        accuracy, own = values["none-0", seed]
        signs = {"distance": -1}
        folders.append(written(tmp_path, "none-0", seed, accuracy, own, stable=signs))
        folders.append(
            written(tmp_path, "subspace-1", seed, accuracy, own, distance=4.0, stable={"distance": 1})
        )
    (row,) = compare(folders).metrics.itertuples(index=False)
    assert row.change == pytest.approx(3 / np.std(np.arange(len(PAIRS)), ddof=1))
    assert row.value - row.plain == pytest.approx(3)
    assert row.stable == -1, "plain fine-tuning says which metrics are stable"
    accuracy, own = values["none-0", 2]
    folders.append(written(tmp_path, "none-0", 2, accuracy, own, stable={"distance": 1}))
    (row,) = compare(folders).metrics.itertuples(index=False)
    assert row.stable == 0, "its seeds do not agree"


def test_the_pareto_front_is_what_no_other_setting_beats_in_both(tmp_path, folders, values):
    """As good on their own as plain and worse when merged is beaten; a copy of plain is not."""
    for seed in range(3):
        plain, own = values["none-0", seed]
        worse = {method: accuracy - 0.01 for method, accuracy in plain.items()}
        folders.append(written(tmp_path, "subspace-1", seed, worse, own))
        folders.append(written(tmp_path, "subspace-2", seed, plain, own))
    table = trade_off_table(compare(folders), "ties", "acc").set_index("setting")
    beaten = {"l2_to_init-1", "subspace-1"}
    assert set(table.index[~table["front"]]) == beaten
    assert set(table.index[table["front"]]) == {"none-0", "l2_to_init-0.1", "subspace-2"}


def test_a_setting_of_one_seed_is_placed_by_its_change_not_by_its_seed(tmp_path, values):
    """Seed 0 is the easy one, as it may be: a setting a point worse than plain there is still worse than plain."""
    folders, flat = [], np.full((len(PAIRS), 2), 0.5)
    for seed, luck in enumerate((0.05, 0.0, -0.05)):
        folders.append(written(tmp_path, "none-0", seed, {"ties": flat + luck}, np.full(4, 0.8 + luck)))
    worse = written(tmp_path, "subspace-1", 0, {"ties": flat + 0.04}, np.full(4, 0.84))
    table = trade_off_table(compare([*folders, worse]), "ties", "acc").set_index("setting")
    assert table.loc["none-0", ["merged", "own"]].tolist() == pytest.approx([0.5, 0.8])
    assert table.loc["subspace-1", ["merged", "own"]].tolist() == pytest.approx([0.49, 0.79])
    assert table["front"].to_dict() == {"none-0": True, "subspace-1": False}
    # A setting without plain of its seed cannot be placed; without plain at all there is only the mean.
    table = trade_off_table(compare([*folders[1:], worse]), "ties", "acc").set_index("setting")
    assert list(table.index) == ["none-0"]
    table = trade_off_table(compare([worse]), "ties", "acc").set_index("setting")
    assert table.loc["subspace-1", "merged"] == pytest.approx(0.54)


def test_the_figures_show_what_the_tables_say(folders):
    found = compare(folders)
    table = trade_off_table(found, "ties", "acc").set_index("setting")
    front, *marks = figures.trade_off(table.reset_index(), "accuracy").data
    assert list(front.x) == pytest.approx(sorted(table.loc[table["front"], "own"]), abs=1e-4)
    shown = {
        name: (x, y, error)
        for mark in marks
        for name, x, y, error in zip(mark.customdata, mark.x, mark.y, mark.error_y.array, strict=True)
    }
    for setting, row in table.iterrows():
        assert shown[setting][:2] == pytest.approx((row["own"], row["merged"]), abs=1e-4)
    changes = found.merges[(found.merges["method"] == "ties") & (found.merges["target"] == "acc")]
    changes = changes[changes["setting"] != "none-0"].set_index("setting")
    (line,) = figures.changes_by_strength(changes.reset_index(), "accuracy").data
    assert list(line.x) == ["0.1", "1"]
    assert list(line.y) == pytest.approx(list(changes["change"]), abs=1e-4)
    for bars in (line.error_y.array, [shown[setting][2] for setting in changes.index]):
        assert list(bars) == pytest.approx(list((changes["high"] - changes["low"]) / 2), abs=1e-4)


def test_labels_of_settings_that_lie_close_do_not_overlap():
    """Plain's label stays, then the front's; of the rest those with room."""
    settings = pd.DataFrame(
        [
            ("beaten", "l2_to_init", 0.123456, 0.701, 0.501, False),
            ("none-0", "none", 0.0, 0.7, 0.5, False),
            ("near it", "subspace", 0.1, 0.701, 0.5, True),
            ("best", "subspace", 0.5, 0.71, 0.51, True),
            ("ruined", "l2_to_init", 10.0, 0.2, 0.1, False),
        ],
        columns=["setting", "penalty", "strength", "own", "merged", "front"],
    ).assign(own_half=np.nan, merged_half=np.nan)

    def labels(shown: pd.DataFrame) -> dict[str, str]:
        _, *marks = figures.trade_off(shown, "accuracy").data
        return {name: text for mark in marks for name, text in zip(mark.customdata, mark.text, strict=True)}

    assert labels(settings) == {"none-0": "plain", "beaten": "", "ruined": "10", "near it": "", "best": ""}
    few = settings[settings["setting"] != "ruined"]
    assert labels(few) == {"none-0": "plain", "beaten": "0.12", "near it": "0.1", "best": "0.5"}
    assert labels(settings[:1]) == {"beaten": "0.12"}


def test_of_runs_of_one_setting_and_seed_the_last_counts(tmp_path, folders, values):
    empty = tmp_path / "empty"
    empty.mkdir()
    accuracy, own = values["l2_to_init-0.1", 0]
    before = {method: value - 0.2 for method, value in accuracy.items()}
    old = written(tmp_path / "old", "l2_to_init-0.1", 0, before, own)
    expected = compare(folders).merges
    pd.testing.assert_frame_equal(compare([empty, old, *folders]).merges, expected)
    pd.testing.assert_frame_equal(compare(folders, beside=[old]).merges, expected)
    assert not compare([*folders, old]).merges.equals(expected)
    with pytest.raises(UserError, match="None of these runs contains a merge"):
        compare([empty])


def test_without_plain_or_with_one_seed_nothing_is_claimed(tmp_path, values):
    alone = written(tmp_path, "subspace-1", 0, *values["none-0", 0])
    found = compare([alone])
    assert found.merges["change"].isna().all()
    assert "Plain fine-tuning (reg.lambda=0) is not among the runs" in " ".join(headline(found))
    plain = written(tmp_path, "none-0", 0, *values["none-0", 1])
    found = compare([alone, plain])
    rows = found.merges[found.merges["setting"] != "none-0"]
    assert rows["change"].notna().all()
    assert rows["low"].isna().all()
    assert winners(found.merges).empty
    assert found.choices.empty
    assert any("With one seed" in sentence for sentence in found.missing)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"suite": "n8"}, "suite (n8{}mini)"),
        ({"model": {"name": "vit_b16"}}, "model (vit_b16{}clip_mini)"),
        ({"variant": "slow"}, "variant (slow{}null)"),
        ({"alpha": 0.5}, "alpha (0.5{}null)"),
        ({"test_images": 100}, "test_images (100{}null)"),
        ({"merge": {"average": {"alpha": 1.0}, "ties": {"alpha": 1.0, "density": 0.1}}}, "merge.ties"),
    ],
    ids=["suite", "model", "variant", "alpha", "images", "merge"],
)
def test_runs_under_other_conditions_are_refused_or_left_out_and_named(
    tmp_path, folders, values, settings, named
):
    other = written(tmp_path / "other", "subspace-1", 0, *values["none-0", 0], **settings)
    with pytest.raises(UserError, match=re.escape(named.format(" and "))):
        compare([other, *folders])
    found = compare(folders, beside=[other])
    pd.testing.assert_frame_equal(found.merges, compare(folders).merges)
    assert found.missing == (f"1 earlier analysis is left out: another {named.format(', here ')}.",)


def test_fewer_pairs_are_another_comparison(tmp_path, folders, values):
    other = written(tmp_path / "other", "subspace-1", 0, *values["none-0", 0])
    pd.read_csv(other / "pairs.csv").iloc[:4].to_csv(other / "pairs.csv", index=False)
    with pytest.raises(
        UserError, match=r"subspace-1 with seed 0 and l2_to_init-1 with seed 2 differ in pairs\."
    ):
        compare([other, *folders])
    assert compare(folders, beside=[other]).missing == ("1 earlier analysis is left out: another pairs.",)


def test_a_variant_has_a_plain_fine_tuning_of_its_own(tmp_path, values):
    folders = [
        written(tmp_path, setting, seed, *found, variant="slow") for (setting, seed), found in values.items()
    ]
    found = compare(folders)
    assert set(found.merges["setting"]) == {"none-0", "l2_to_init-0.1", "l2_to_init-1"}
    assert changed(found.merges, "l2_to_init-0.1", "ties")["change"] == pytest.approx(0.03, abs=0.01)
    assert not found.missing
    assert "variant slow" in found.facts[0]


def test_what_not_every_run_has_measured_is_left_out_not_a_crash(tmp_path, values):
    plain, own = values["none-0", 0]
    folders = [
        written(tmp_path, "none-0", 0, {"ties": plain["ties"]}, own, distance=None),
        written(tmp_path, "subspace-1", 0, {"average": plain["average"]}, own),
    ]
    found = compare(folders)
    assert found.metrics.empty
    page = write_summary(tmp_path, folders).read_text()
    assert "No setting could be compared with plain fine-tuning" in page
    folders.append(written(tmp_path, "subspace-2", 0, plain, own))
    assert any("there is no mean over methods" in sentence for sentence in headline(compare(folders)))


def test_an_outcome_that_is_not_known_is_no_win(tmp_path, folders, values):
    for seed in range(3):
        plain, own = values["none-0", seed]
        better = {method: accuracy + 0.1 + 0.001 * seed for method, accuracy in plain.items()}
        folder = written(tmp_path, "subspace-1", seed, better, own)
        pairs = pd.read_csv(folder / "pairs.csv")
        pairs[[name for name in pairs.columns if name.startswith("norm_acc")]] = np.nan
        pairs.to_csv(folder / "pairs.csv", index=False)
        folders.append(folder)
    found = compare(folders)
    assert changed(found.merges, "subspace-1", "ties")["low"] > 0
    assert set(winners(found.merges)["setting"]) == {"l2_to_init-0.1"}
    assert winners(found.merges[found.merges["setting"] == "subspace-1"]).empty
    assert "nan" not in " ".join(headline(found))


def test_a_search_of_one_seed_says_that_its_best_is_the_largest_of_many(tmp_path, values):
    folders = [written(tmp_path, "none-0", seed, *values["none-0", seed]) for seed in range(2)]
    plain, own = values["none-0", 0]
    for trial in range(7):
        better = {method: accuracy + 0.001 * trial for method, accuracy in plain.items()}
        folders.append(written(tmp_path, f"subspace-{trial + 1}", 0, better, own))
    said = headline(compare(folders))
    assert said == [
        "In the mean over all methods, subspace-7 has the best accuracy: +0.6 points (one seed, and the largest of 7 changes:"
        " no interval).",
        "7 of 8 settings were not run with all of the seeds 0, 1. Settings with a single seed have no interval.",
    ]
    # Two settings of two seeds can win, and only they count as tried.
    setting = "l2_to_init-0.1"
    folders += [written(tmp_path / "more", setting, seed, *values[setting, seed]) for seed in range(2)]
    first = headline(compare(folders))[0]
    assert first.startswith("2 of 2 combinations")
    assert "about 0.1 would in one of the two by chance" in first


def test_an_unfinished_seed_is_named(folders):
    found = compare(folders[:-1])
    assert any(
        "Not measured for every seed: l2_to_init-1 (seeds 0, 1)" in sentence for sentence in found.missing
    )
    assert found.choices.set_index("penalty").loc["l2_to_init", "strengths"] == "0.1, 0.1, 0.1"
    # Of three seeds' plain fine-tunings and one penalised one there is nothing to choose.
    plain, one = folders[::3], folders[1]
    assert compare([*plain, one]).choices.empty


def test_the_page_and_its_tables_are_written(tmp_path, folders):
    page = write_summary(tmp_path, folders)
    text = page.read_text()
    assert page == tmp_path / "ablation.html"
    for anchor in ("trade-off", "choice", "merges", "models", "metrics", "made"):
        assert f'<section id="{anchor}" ' in text
    row = changed(compare(folders).merges, "l2_to_init-0.1", ALL_METHODS)
    said = (
        f"l2_to_init-0.1, averaged over all methods: accuracy {100 * row['change']:+.1f} points, normalised"
    )
    assert said in text
    assert said in headline(compare(folders))[1]
    assert headline(compare(folders))[1].endswith("single-task accuracy -1.0.")
    tables = {path.name: pd.read_csv(path) for path in tmp_path.glob("ablation_*.csv")}
    assert set(tables) == {f"ablation_{name}.csv" for name in ("merges", "models", "metrics", "choices")}
    assert len(tables["ablation_merges.csv"]) == 3 * 3 * 2


def test_the_interval_of_one_value_is_unknown():
    assert np.isnan(student_interval(np.array([1.0]))).all()


def test_outcomes_without_the_accuracies_of_both_tasks_are_not_compared(folders):
    before = compare(folders).merges
    for folder in folders:
        pairs = pd.read_csv(folder / "pairs.csv")
        pairs.drop(columns=["norm_acc_ties_a", "norm_acc_ties_b"]).to_csv(folder / "pairs.csv", index=False)
    found = compare(folders).merges
    assert set(zip(found["method"], found["target"], strict=True)) == {
        ("average", "acc"), ("average", "norm_acc"), ("ties", "acc"), (ALL_METHODS, "acc"), (ALL_METHODS, "norm_acc"),
    }  # fmt: skip
    for setting in ("l2_to_init-0.1", "l2_to_init-1"):
        of_all = changed(found, setting, ALL_METHODS, "norm_acc")
        assert of_all["change"] == pytest.approx(changed(before, setting, "average", "norm_acc")["change"])
