"""What every metric keeps to, found in `conf/metric`: a new one is tested the day its file exists."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from mergeability.metrics.measure import EXTRA, MINIMAL, PAPER, SHARED, WEIGHT_SPACE, measure

FOLDER = Path(__file__).parents[2] / "conf" / "metric"
SETS = ("all", "minimal", "paper", "shared", "weights")
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in SETS)


def options(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def function(name):
    module, _, attribute = options(name)["_target_"].rpartition(".")
    return getattr(import_module(module), attribute)


def member(name):
    keywords = {key: value for key, value in options(name).items() if not key.startswith("_")}
    return lambda profiles: function(name)(profiles, **keywords)


def names_in_set(name):
    found = []
    for entry in options(name)["defaults"]:
        found += names_in_set(entry) if entry in SETS else [entry]
    return found


@pytest.fixture
def table_of(make_profiles):
    def table(models, **options):
        return measure(make_profiles(models, **options), {name: member(name) for name in MEMBERS})

    return table


def test_the_folder_and_the_python_table_say_the_same():
    everything = {**PAPER, **EXTRA, **SHARED}
    assert (len(PAPER), len(EXTRA), len(SHARED)) == (28, 7, 6)
    assert sorted(everything) == MEMBERS
    for name, metric in everything.items():
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith(f"# @package metric.{name}\n")
        assert function(name) is metric.func
        assert options(name).pop("_partial_") is True
        rest = {key: value for key, value in options(name).items() if not key.startswith("_")}
        assert rest == metric.keywords


def test_the_sets_are_complete():
    assert names_in_set("weights") == list(WEIGHT_SPACE)
    assert names_in_set("paper") == list(PAPER)
    assert names_in_set("minimal") == list(MINIMAL)
    assert names_in_set("shared") == list(SHARED)
    assert [name for name in MEMBERS if name.startswith("shared_")] == sorted(SHARED)
    # What takes two passes per pair is only measured when it is asked for.
    assert sorted(names_in_set("all")) == [name for name in MEMBERS if name not in SHARED]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_metric_is_symmetric(make_profiles, five_models, name):
    matrix = member(name)(make_profiles(five_models))
    assert matrix.shape == (5, 5)
    assert matrix.dtype == np.float64
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12)


def test_the_order_of_the_models_changes_no_pair(table_of, five_models):
    table = table_of(five_models)
    turned = table_of({task: five_models[task] for task in "ecabd"})
    for a, b in table.index:
        other = turned.loc[(a, b) if (a, b) in turned.index else (b, a)]
        np.testing.assert_allclose(other, table.loc[(a, b)], rtol=1e-6, err_msg=f"{a} {b}")


def test_a_pair_does_not_change_when_others_join(table_of, five_models):
    pair = table_of({task: five_models[task] for task in "ab"}, pool=["a", "b"])
    everyone = table_of(five_models, pool=["a", "b"])
    np.testing.assert_allclose(everyone.loc[("a", "b")], pair.loc[("a", "b")], rtol=1e-6)


def chance_of(name):
    """Average what random subspaces overlap over two matrices of 12 by 12 and one of 6 by 12, k = 10."""
    k, space = np.array([10, 10, 6]), np.array([12, 12, 6 if name.startswith("subspace") else 12])
    return np.mean(k / space if name.startswith("interaction") else np.sqrt(k / space))


def test_two_copies_of_a_model_agree_perfectly(table_of, five_models):
    row = table_of({"a": five_models["a"], "copy": five_models["a"]}, alike=("a", "copy")).iloc[0]
    low, high = 0.0, 1.0
    expected = dict.fromkeys(MEMBERS, high)
    expected |= {name: low for name in MEMBERS if "distance" in name or "angle" in name}
    expected |= {"singular_value_ratio": low, "sign_conflict": low}
    expected |= {name: high - chance_of(name) for name in MEMBERS if name.endswith("_excess")}
    for name in MEMBERS:
        if "dot_product" in name:
            assert row[name] > 0
        elif name == "subspace_overlap":
            # Its maximum is 1/√k per matrix, k clipped to the sides: two of 12 by 12 and one of 6 by 12.
            assert row[name] == pytest.approx((2 / np.sqrt(10) + 1 / np.sqrt(6)) / 3, rel=1e-5)
        else:
            assert row[name] == pytest.approx(expected[name], abs=2e-6), name
