"""How an analysis grows with the number of models: what belongs to a model is computed once for each, never per pair."""

import json
import sys
from math import comb
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import scale


def check(found, count):
    """Check what grows with the models, and what with the pairs."""
    filed = found["filed"]
    assert filed["singular"] == count * scale.LAYERS
    assert filed["relative_norm"] == count
    assert (filed["gram"], filed["overlap"], filed["base_norm"]) == (scale.LAYERS, 1, 1)
    # Nothing of the store is kept per pair: these kinds are all there are.
    assert set(filed) == {"singular", "relative_norm", "gram", "overlap", "base_norm"}
    assert scale.per_model(filed, count) == scale.LAYERS + 1
    assert found["evaluated"] == scale.PER_MODEL * count
    assert found["pairs"] == comb(count, 2)
    kinds = found["store_bytes_by_kind"]
    squares = 8 * scale.LAYERS * count**2
    assert squares <= kinds["gram"] <= 1.1 * squares + 8192
    assert 4 * squares <= kinds["overlap"] <= 4.1 * squares + 8 * scale.LAYERS * count * scale.SIZE + 8192
    assert found["error"] < 0.5 * found["error_of_mean"]
    assert found["inside"] > 0.8


def test_the_simulation_runs_at_a_tiny_size(tmp_path):
    found = scale.analysis(12, tmp_path)
    check(found, 12)
    assert (tmp_path / "run/report.html").is_file()
    assert len((tmp_path / "run/predicted_pairs.csv").read_text().splitlines()) == 1 + 66 - 60
    text = scale.table({"12": found})
    assert "| 12 | 66 | 60 | 9 |" in text


@pytest.mark.slow
def test_two_hundred_models_cost_twice_as_much_as_one_hundred(tmp_path, monkeypatch, capsys):
    assert scale.main(["--models", "100", "200", "--results", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "scale.json").read_text())
    for count in (100, 200):
        check(written["models"][str(count)], count)
    singular = [written["models"][count]["store_bytes_by_kind"]["singular"] for count in ("100", "200")]
    assert singular[1] == pytest.approx(2 * singular[0], rel=0.02)
    reports = [written["models"][count]["report_bytes"] for count in ("100", "200")]
    assert reports[1] < 2 * reports[0]
    assert written["command"] in (tmp_path / "scale.md").read_text()
    assert "| 200 | 19900 | 1000 | 9 |" in capsys.readouterr().out
