"""The code the benchmarks compare with is an oracle: it has to be right too."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import agreement, finetune_throughput, models, opponents, penalty_cost, study_cost
from benchmarks.__main__ import main


@pytest.mark.parametrize("opponent", opponents.OPPONENTS)
def test_pairwise_code_agrees_with_the_golden_values_and_with_ours(opponent):
    assert agreement.golden_disagreements(opponent) == []
    with models.written(models.SIZES["tiny"], 3) as suite:
        assert agreement.our_disagreements(suite, opponent) == []
        place = suite.base.parent
    assert not place.exists(), "models are removed"


def test_a_difference_is_found(monkeypatch):
    monkeypatch.setitem(opponents.OPPONENTS, "careful", lambda *_: {"effective_rank": 1.5})
    found = agreement.golden_disagreements("careful")
    assert any("effective_rank is 1.5" in sentence for sentence in found)


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_tiny_size(tmp_path):
    assert main(["--sizes", "tiny", "--results", str(tmp_path), "--folder", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "metrics.json").read_text())["sizes"]["tiny"]
    assert set(results["parts"]) == {"floor", "time", "opponents", "memory"}
    text = (tmp_path / "metrics.md").read_text()
    assert "÷ ours" in text
    assert str(tmp_path) not in text


def test_the_throughput_benchmark_runs_at_a_tiny_size_and_wants_a_gpu_for_a_real_one(capsys, monkeypatch):
    import torch

    assert (
        finetune_throughput.main(["--sizes", "tiny", "--device", "cpu", "--steps", "2", "--rounds", "2"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["images_per_second"].keys() == {"bare", "fine_tuning"}
    rates = found["images_per_second"]
    assert found["share"] == pytest.approx(rates["fine_tuning"] / rates["bare"], rel=0.01)
    assert (found["models"], found["pairs"], found["metrics"]) == (3, 3, 28)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert finetune_throughput.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_cost_of_penalties_is_measured_at_a_tiny_size(tmp_path, capsys, monkeypatch):
    import torch

    assert penalty_cost.main(["--sizes", "tiny", "--rounds", "2", "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "penalty_cost.json").read_text())["sizes"]["tiny"]["penalties"]
    assert found["plain"]["ratio"] == 1
    # Of every penalty of version 0.1.0 the cost is known.
    published = json.loads((Path(__file__).parents[1] / "published/members_0.1.0.json").read_text())
    assert {name.split()[0] for name in found} >= {*published["options"]["reg"], "plain"} - {"none"}
    assert all(one["ratio"] > 0 and len(one["all_ratios"]) == 2 for one in found.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert penalty_cost.main(["--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_cost_of_a_study_is_measured_and_compared_with_plain_code(capsys):
    assert study_cost.main(["--alone", "7"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["folds"] == 21
    assert own["cpu_seconds"] > 0
    compared = study_cost.against_plain(8, 1)
    assert compared.keys() == {"fold", "permutation"}
    for one in compared.values():
        assert one["ratio"] > 0
        # Both sides compute the same numbers.
        assert one["difference"] < 1e-10
    shown = study_cost.table({"7": {"study": own, **compared, "bytes_of_all_folds_at_once": 2**30}})
    assert "1.000" in shown.splitlines()[1]
    with pytest.raises(SystemExit):
        study_cost.main(["--tasks", "3"])
