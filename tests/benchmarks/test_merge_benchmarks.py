"""The plain merges are oracles, and the report says what was measured: both have to be right."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import agreement, child, merge_report, merges, models, plan
from benchmarks import merge_opponents as plain
from benchmarks.__main__ import main

STARRED = ("average", "ta", "ties", "tsv", "iso_c", "iso_cts", "consensus_ta")
GIB = 2**30


@pytest.fixture(scope="module")
def suite():
    with models.written(models.SIZES["tiny"], 3) as written:
        yield written


@pytest.fixture(scope="module")
def pair():
    with models.written(models.SIZES["tiny"], 2) as written:
        yield written


@pytest.mark.parametrize("method", plain.MERGES)
def test_plain_merges_agree_with_the_golden_values_and_with_ours(suite, pair, method):
    assert agreement.golden_merge_disagreements(method) == []
    assert agreement.our_merge_disagreements(suite, method) == []
    assert agreement.our_merge_disagreements(pair, method) == []


@pytest.mark.parametrize("method", STARRED)
def test_a_wrong_plain_merge_is_found_by_the_golden_values_of_two_and_of_four_models(monkeypatch, method):
    right = plain.MERGES[method]

    def wrong(*arguments, **options):
        merged = right(*arguments, **options)
        return merged | {"visual.proj": 1.01 * merged["visual.proj"]}

    monkeypatch.setitem(plain.MERGES, method, wrong)
    names = (
        ["ties", "ties_sum"]
        if method == "ties"
        else [{"ta": "task_arithmetic", "tsv": "tsv_m"}.get(method, method)]
    )
    found = agreement.golden_merge_disagreements(method)
    for name in names:
        for count in ("task0+task1", "task0+task1+task2+task3"):
            assert f"plain {name} on golden {count}: visual.proj differs" in found
    assert len(found) == 2 * len(names)


def test_a_difference_between_two_merges_is_found_whatever_it_is():
    right = {"a": torch.tensor([3.0, 4.0]), "zero": torch.zeros(2)}
    assert agreement.merge_differences(right, right, "x") == []
    nearly = right | {"a": torch.tensor([3.0, 4.0004])}
    assert agreement.merge_differences(nearly, right, "x") == []
    for wrong in (
        right | {"a": torch.tensor([3.0, 4.0006])},
        right | {"a": torch.tensor([3.0, math.nan])},
        right | {"zero": torch.tensor([0.0, 1e-9])},
        right | {"more": torch.zeros(1)},
        {"a": right["a"]},
    ):
        assert len(agreement.merge_differences(wrong, right, "x")) == 1


def test_statistics_of_thinning_tell_right_from_wrong():
    draw = np.random.default_rng(0)
    deltas = [torch.from_numpy(draw.normal(size=200_000)) for _ in range(3)]
    masks = [torch.from_numpy(draw.random(200_000) >= 0.9) for _ in deltas]
    kept = [delta * mask for delta, mask in zip(deltas, masks, strict=True)]
    right = torch.stack(kept).mean(0) / 0.1
    assert agreement.thinning_differences(right, deltas, 0.9, "x") == []
    biased = agreement.thinning_differences(0.1 * right, deltas, 0.9, "x")
    unthinned = agreement.thinning_differences(torch.stack(deltas).mean(0), deltas, 0.9, "x")
    for found, what in ((biased, "projection on the mean"), (unthinned, "share of entries kept")):
        assert [sentence.split(" is ")[0] for sentence in found] == [f"x: the {what}"]


@pytest.mark.parametrize("selection", plain.SELECTIONS)
def test_every_selection_finds_the_same_magnitude(selection):
    values = np.random.default_rng(1).normal(size=1001).astype(np.float32).round(1)
    for rank in (1, 500, 801, 1001):
        found = plain.SELECTIONS[selection](torch.from_numpy(values).abs(), rank)
        assert found == np.sort(np.abs(values))[rank - 1]


def test_steps_of_ties_on_two_vectors_solved_by_hand():
    vectors = torch.tensor([[5.0, -4.0, 3.0, 0.1, 2.0], [1.0, 6.0, -3.0, 2.0, 0.5]])
    # Two fifths of five are two: the third smallest magnitude and what is as large or larger.
    found = plain.thresholds(vectors, 0.4, plain.SELECTIONS["torch.kthvalue"])
    assert found.flatten().tolist() == [3, 2]
    trimmed = plain.trim(vectors, found)
    assert trimmed.tolist() == [[5, -4, 3, 0, 0], [0, 6, -3, 2, 0]]
    # Third: 3 − 3 = 0, and three of three other signs are positive.
    signs = plain.elect(trimmed)
    assert signs.tolist() == [1, 1, 1, 1, 1]
    assert plain.disjoint_merge(trimmed, signs).tolist() == [5, 6, 3, 2, 0]
    both = torch.tensor([[2.0], [4.0]])
    assert plain.disjoint_merge(both, torch.ones(1)).tolist() == [3]
    assert plain.disjoint_merge(both, torch.ones(1), "sum").tolist() == [6]


def test_methods_come_from_the_folder_of_configurations():
    published = json.loads((Path(__file__).parents[1] / "published/members_0.1.0.json").read_text())["sets"]
    assert {"fisher", "regmean"} <= set(merges.needing_data())
    # Each method of version 0.1.0 has a plain counterpart; a later one is measured alone until it gets one.
    assert set(published["merge"]["data_free"]) <= set(plain.MERGES) <= set(merges.of_count(2))
    assert "slerp" in set(merges.of_count(2)) - set(merges.of_count(3))
    assert merges.made("dare").then.alpha == 1


def test_a_sketch_tells_how_far_two_merges_are_apart():
    draw = np.random.default_rng(2)
    shapes = {"a": (300, 7), "b": (5,), "c": ()}
    one = {name: torch.from_numpy(draw.normal(size=shape)) for name, shape in shapes.items()}
    turned = dict(reversed(one.items()))
    assert merges.difference(merges.sketch(turned), merges.sketch(one)) < 1e-12
    estimates = []
    for _ in range(40):
        other = {
            name: tensor + 0.01 * torch.from_numpy(draw.normal(size=tensor.shape))
            for name, tensor in one.items()
        }
        estimates.append(merges.difference(merges.sketch(other), merges.sketch(one)))
    # Of 16 numbers each: within a factor of two or so, and right in the root mean square over many.
    length = np.linalg.norm(merges.sketch(one)) / math.sqrt(
        sum(float(t.square().sum()) for t in one.values())
    )
    assert np.sqrt(np.mean(np.square(estimates))) * length == pytest.approx(0.01, rel=0.15)
    swapped = one | {"a": one["a"].flip(0)}
    assert merges.difference(merges.sketch(swapped), merges.sketch(one)) > 0.5
    assert merges.difference([0.0], [0.0]) == 0
    assert merges.difference([1.0], [0.0]) == math.inf


def test_what_two_models_take_is_compared_with_its_parts_first_and_in_turn(suite):
    steps = plan.steps(suite, plan.Choice((plan.MERGE,), merge_models=(2, 3), rounds=2))
    kinds = [(step.labels["kind"], step.labels.get("method")) for step in steps[:7]]
    assert kinds == [
        ("svd_floor", None),
        ("ours", "iso_c"),
        ("ours", "tsv"),
        ("from_store", "tsv"),
        ("ties_resident", None),
        ("ours", "ties"),
        ("from_store", "ties"),
    ]
    again = [
        (step.labels["kind"], step.labels.get("method"), step.labels.get("round")) for step in steps[7:14]
    ]
    assert again == [(*one, 1) for one in kinds]
    rest = [(step.labels["kind"], step.labels["method"], step.labels["models"]) for step in steps[14:]]
    assert ("ours", "tsv", 2) not in rest
    assert {("plain", name, 2) for name in plain.MERGES} <= set(rest)
    assert ("ours", "slerp", 2) in rest
    assert ("ours", "slerp", 3) not in rest
    assert all(len(step.job["models"]) == step.labels["models"] for step in steps)


def test_each_merge_has_a_store_of_its_own_that_only_its_repetition_shares(suite):
    steps = plan.steps(suite, plan.Choice((plan.MERGE,), merge_models=(2,), rounds=2))
    ours = [step for step in steps if step.job["measure"] == "merge"]
    cold = [step for step in ours if step.labels["kind"] == "ours"]
    assert len({step.job["store"] for step in cold}) == len(cold)
    for first, second in zip(steps, steps[1:], strict=False):
        if second.labels["kind"] == "from_store":
            assert first.job == second.job
            assert first.scratch is None, "removed before it is used again"
            assert str(second.scratch) == second.job["store"]


def test_only_chosen_methods_are_measured_and_only_their_parts(suite):
    steps = plan.steps(
        suite, plan.Choice((plan.MERGE,), merge_models=(2,), merge_methods=("ties",), rounds=1)
    )
    assert [step.labels["kind"] for step in steps] == ["ties_resident", "ours", "from_store", "plain"]
    steps = plan.steps(suite, plan.Choice((plan.MERGE,), merge_models=(3,), merge_methods=("ties",)))
    assert [step.labels["kind"] for step in steps] == ["ours", "from_store", "plain"]
    choice = plan.Choice((plan.MERGE,), merge_models=(2, 3), merge_methods=("average",), plain_models=(2,))
    assert [(step.labels["kind"], step.labels["models"]) for step in plan.steps(suite, choice)] == [
        ("ours", 2),
        ("plain", 2),
        ("ours", 3),
    ]


def test_merges_are_left_out_unless_they_are_asked_for(suite):
    choice = plan.Choice(time_models=(2,), memory_models=(2,), pairs=1)
    assert {step.part for step in plan.steps(suite, choice)} == set(plan.PARTS)
    assert choice.models == 2
    assert plan.Choice((plan.MERGE,)).models == 20


@pytest.mark.parametrize(("method", "kind"), [("tsv", "svd"), ("ties", "magnitude")])
def test_the_second_merge_finds_in_the_store_what_the_first_computed(pair, tmp_path, method, kind):
    job = {"base": str(pair.base), "models": {name: str(path) for name, path in pair.models.items()}}
    first, again = (child.merge(method=method, store=str(tmp_path), **job) for _ in range(2))
    assert first["stages"]["merge"]["filed"][kind] >= 2
    assert kind not in again["stages"]["merge"]["filed"]
    assert set(first["stages"]) == {"opening", "merge"}
    parts = child.plain_merge(method=method, **job)
    assert merges.difference(first["sketch"], parts["sketch"]) < 1e-4
    assert again["sketch"] == pytest.approx(first["sketch"])


def test_the_parts_are_measured_on_all_matrices_and_by_every_selection(pair):
    job = {"base": str(pair.base), "models": {name: str(path) for name, path in pair.models.items()}}
    # Four in each of two blocks, the positions and the projection; of two models.
    assert child.svd_floor(**job)["matrices"] == 2 * (2 * 4 + 2)
    resident = child.ties_resident(**job)
    assert set(resident["selections"]) == set(plain.SELECTIONS)
    assert resident["selections"][resident["selection"]] == min(resident["selections"].values())
    whole = resident["selections"][resident["selection"]] + sum(
        one["seconds"] for one in resident["stages"].values()
    )
    assert resident["seconds"] == pytest.approx(whole)
    expected = merges.sketch(plain.ties(pair.base, list(pair.models.values())))
    assert resident["sketch"] == pytest.approx(expected)


def test_a_plain_merge_without_enough_memory_is_skipped_and_other_errors_are_not(monkeypatch, pair):
    job = {"base": str(pair.base), "models": {name: str(path) for name, path in pair.models.items()}}

    def raising(error):
        def merge(*_):
            raise error

        return merge

    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()):
        monkeypatch.setitem(plain.MERGES, "ta", raising(error))
        assert "needs more memory" in child.plain_merge(method="ta", **job)["skipped"]
    monkeypatch.setitem(plain.MERGES, "ta", raising(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        child.plain_merge(method="ta", **job)


def test_a_measurement_that_takes_too_long_is_given_up():
    assert plan.in_fresh_process({"measure": "imported"}, 0.01) == {"skipped": "given up after 0.01 s"}


def ours(method, seconds, *, kind="ours", count=2, peak=GIB, opening=1.0, sketch=(3.0, 4.0)):
    return {
        "kind": kind,
        "method": method,
        "models": count,
        "seconds": opening + seconds,
        "stages": {"opening": {"seconds": opening}, "merge": {"seconds": seconds}},
        "peak_bytes": peak,
        "sketch": list(sketch),
    }


def simple(kind, seconds, **more):
    return {
        "kind": kind,
        "models": 2,
        "seconds": seconds,
        "peak_bytes": 2 * GIB,
        "sketch": [3.0, 4.0],
        **more,
    }


RESIDENT = {
    "selection": "np.partition",
    "selections": {"torch.kthvalue": 2.0, "np.partition": 1.5},
    "stages": {"election": {"seconds": 1.0}, "mean": {"seconds": 1.5}},
}


def test_claims_compare_the_fastest_of_both_sides_and_say_whether_they_hold():
    measurements = [
        simple("svd_floor", 12.0),
        simple("svd_floor", 10.0),
        ours("tsv", 14.0),
        ours("tsv", 11.9),
        ours("tsv", 5.1, kind="from_store"),
        ours("iso_c", 12.1),
        simple("ties_resident", 4.0, **RESIDENT),
        ours("ties", 4.8),
        ours("ties", 1.0, count=20, peak=int(2.5 * GIB)),
        ours("ta", 1.0, count=20, peak=int(3.5 * GIB)),
    ]
    found = {
        one.what: (round(one.value, 9), one.below, one.holds) for one in merge_report.claims(measurements)
    }
    assert found == {
        "`tsv`, 2 models": (1.19, 1.2, True),
        "`tsv`, 2 models, factors in the store": (0.51, 0.5, False),
        "`iso_c`, 2 models": (1.21, 1.2, False),
        "`ties`, 2 models": (1.2, 1.2, True),
        "peak memory of 20 models, 2 methods": (3.5, 3.0, False),
    }
    assert merge_report.claims([ours("tsv", 1.0)]) == [], "without the reference nothing is said"
    assert merge_report.claims([simple("svd_floor", 1.0), ours("tsv", 1.0, count=8)]) == []


def results(measurements):
    record = {
        "date": "2025-01-01",
        "command": "python -m benchmarks --part merge",
        "commit": None,
        "load": 0.1,
        "machine": {"processor": "p", "cores": 2, "memory_gib": 8, "system": "s"},
        "versions": {"linear_algebra": ["mkl"], "torch": "9"},
        "measurements": measurements,
    }
    return {"sizes": {"tiny": {"parts": {"merge": record}}}}


def cells(text, beginning):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(f"| {beginning}")
    ]


def test_the_table_says_seconds_ratio_peaks_and_difference_of_each_method():
    text = merge_report.markdown(
        results(
            [
                simple("svd_floor", 10.0),
                ours("tsv", 14.0, peak=3 * GIB),
                ours("tsv", 12.0, opening=0.5),
                ours("tsv", 4.0, kind="from_store", opening=0.1),
                simple("plain", 25.0, method="tsv", sketch=[3.0, 5.0]),
                ours("dare", 3.0, sketch=(9.0, 9.0)),
                simple("plain", 8.0, method="dare"),
                ours("ties", 20.0, count=20),
                {"kind": "plain", "method": "ties", "models": 20, "peak_bytes": GIB, "skipped": "needs more"},
                {"kind": "ours", "method": "ta", "models": 20, "peak_bytes": GIB, "failed": "no luck"},
            ]
        )
    )
    away = f"{1 / math.sqrt(34):.0e}"
    assert ["`tsv`", "2", "0.5", "12", "25", "2.0", "3.00 GiB", "2.00 GiB", away] in cells(text, "`tsv` ")
    stored = ["`tsv`, factors in the store", "2", "0.1", "4", "25", "6.1", "1.00 GiB", "2.00 GiB", away]
    assert stored in cells(text, "`tsv`, factors")
    assert ["`dare`", "2", "1", "3", "8", "2.0", "1.00 GiB", "2.00 GiB", "–"] in cells(text, "`dare`")
    assert ["`ties`", "20", "1", "20", "–", "–", "1.00 GiB", "–", "–"] in cells(text, "`ties`")
    assert ["`ta`", "20", "failed", *["–"] * 6] in cells(text, "`ta`")
    assert "- ties, the plain way, 20 models: needs more" in text
    assert "- ta, 20 models: no luck" in text
    claim = next(line for line in text.splitlines() if line.startswith("| `tsv`, 2 models "))
    assert "12 s (14, 12) ÷ 10 s (10), one thin SVD of each matrix and model: 1.20" in claim
    assert claim.split("|")[-2].strip() == "yes"
    assert "`fisher`, `regmean`" in text


def test_the_fastest_exact_selection_is_named():
    text = merge_report.markdown(
        results([simple("ties_resident", 4.0, **RESIDENT), simple("ties_resident", 5.0, **RESIDENT)])
    )
    assert ["**all, selecting by `np.partition`**", "4"] in cells(text, "**all")
    assert ["select by `torch.kthvalue`", "2"] in cells(text, "select")


def test_methods_that_differ_from_the_plain_way_are_named():
    def parts(sketch):
        return {
            "merge": {
                "measurements": [
                    ours("ta", 1.0),
                    ours("tsv", 1.0, sketch=sketch),
                    ours("dare", 1.0, sketch=(0.0, 0.0)),
                    *(simple("plain", 1.0, method=name) for name in ("ta", "tsv", "dare")),
                ]
            }
        }

    assert merge_report.disagreeing(parts((3.0, 4.04))) == []
    assert merge_report.disagreeing(parts((3.0, 4.06))) == ["tsv"]
    assert merge_report.disagreeing(parts((3.0, math.nan))) == ["tsv"]
    assert merge_report.derived(parts((3.0, 4.0)))["claims"] == []


def test_nothing_is_measured_as_long_as_values_differ(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(plain.MERGES, "ta", lambda *_: {})
    assert main(["--sizes", "tiny", "--part", "merge", "--results", str(tmp_path)]) == 1
    assert "only one side has" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_merges_are_benchmarked_at_a_tiny_size(tmp_path):
    places = ["--results", str(tmp_path), "--folder", str(tmp_path)]
    chosen = ["--models", "2", "--methods", "tsv", "ties", "slerp"]
    assert main(["--sizes", "tiny", "--part", "merge", *chosen, *places]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"merges.json", "merges.md"}
    results = json.loads((tmp_path / "merges.json").read_text())["sizes"]["tiny"]
    measured = results["parts"]["merge"]["measurements"]
    assert not [one for one in measured if "failed" in one or "skipped" in one]
    assert len(results["derived"]["claims"]) == 4
    assert all(one["relative"] < 1e-4 for one in results["derived"]["differences"])
    text = (tmp_path / "merges.md").read_text()
    assert "plain ÷ ours" in text
    assert str(tmp_path) not in text
