"""Signs of metrics over methods, seeds and architectures."""

import numpy as np
import pytest
from planted_pairs import METRICS, SAME, cells_of, planted

from mergeability.prediction.architectures.cells import Cells
from mergeability.prediction.architectures.prerequisites import (
    FAMILIES,
    family_correlation,
    prerequisite_table,
)
from mergeability.prediction.architectures.signs import (
    method_signs,
    sign_table,
    stable_by_chance,
    stable_metrics_of,
)


@pytest.fixture(scope="module")
def cells():
    """The metric `two` changes its sign in the large architecture."""
    turned = {method: {**SAME, "two": 0.15} for method in ("ties", "tsv")}
    small = [planted("small", seed) for seed in (0, 1)]
    return cells_of(*small, *(planted("large", seed, turned, draw=1) for seed in (0, 1)))


def test_planted_signs_are_found_per_architecture_and_overall(cells):
    table = sign_table(cells, {"one": "first"}).set_index(["architecture", "metric"])
    for column in ("sign_r", "sign_weight"):
        assert table.loc[("small", "one"), column] == table.loc[("all", "one"), column] == 1
        assert table.loc[("small", "two"), column] == -1
        assert table.loc[("large", "two"), column] == 1
        assert table.loc[("all", "two"), column] == 0
    assert table.loc[("all", "one"), "family"] == "first"
    assert table.loc[("all", "one"), "n"] == 8
    assert table.loc[("all", "one"), "positive_r"] == 1
    assert table.loc[("all", "two"), "positive_weight"] == 0.5
    stable = stable_metrics_of(sign_table(cells, {}), ["small", "large"], "sign_weight")
    assert {"one", "three"} <= set(stable)
    assert "two" not in stable


def test_mean_correlation_is_that_of_numpy(cells):
    found = method_signs(cells, {})
    own = found[(found["architecture"] == "small") & (found["method"] == "ties") & (found["metric"] == "one")]
    expected = [
        np.corrcoef(planted("small", seed).pairs["one"], planted("small", seed).pairs["norm_acc_ties"])[0, 1]
        for seed in (0, 1)
    ]
    assert own["r"].iloc[0] == pytest.approx(np.mean(expected))
    assert own["r_low"].iloc[0] < own["r"].iloc[0] < own["r_high"].iloc[0]


def test_stable_signs_are_compared_with_permuted_task_names():
    """With one architecture, all methods alike, every metric has one sign, by chance as well."""
    alike = cells_of(planted("small", 0, noise=0.0))
    assert stable_by_chance(alike, 20) == (len(METRICS), len(METRICS), 1.0)
    # With unrelated metrics in six architectures, hardly any has one sign everywhere by chance.
    analyses = [planted(f"kind{draw}", 0, draw=draw) for draw in range(6)]
    observed, by_chance, p = stable_by_chance(cells_of(*analyses), 40)
    assert observed >= 2
    assert by_chance < 1
    assert p < 0.05


def test_a_prerequisite_is_clear_under_every_method_and_its_opposite_is_against():
    gradient, subspace = "encoder_gradient_l2_distance", "subspace_overlap"
    names = (gradient, subspace)
    weights = {method: dict.fromkeys(names, -1.0) for method in ("ties", "tsv")}
    cells = cells_of(planted("small", 0, weights, names=names), metrics=names)
    table = prerequisite_table(method_signs(cells, {})).set_index("metric")
    # A shorter distance of gradients means aligned gradients.
    assert table.loc[gradient, ["expected", "methods", "clear", "against"]].tolist() == [-1, 2, 2, 0]
    assert table.loc[gradient, "foundational"]
    assert table.loc[subspace, ["expected", "methods", "clear", "against"]].tolist() == [1, 2, 0, 2]
    assert not table.loc[subspace, "foundational"]
    assert family_correlation(cells, "gradient alignment").value > 0.4
    assert family_correlation(cells, "subspace overlap", "small").value < -0.4


def test_families_are_published_metrics_of_their_categories():
    from mergeability.metrics.catalogue import CATEGORIES

    assert set(FAMILIES["gradient alignment"]) == set(CATEGORIES["gradient"])
    assert set(FAMILIES["subspace overlap"]) == set(CATEGORIES["subspace"])


def test_signs_over_architectures_need_several_of_them_and_a_metric():
    one = planted("small", 0)
    for cells, least in ((Cells.of([one], METRICS, {}), 2), (Cells.of([one], (), {}), 1)):
        observed, by_chance, p = stable_by_chance(cells, 5, least=least)
        assert observed == 0
        assert np.isnan([by_chance, p]).all()
