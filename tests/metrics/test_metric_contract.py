"""What every metric keeps to, found in `conf/metric`: a new one is tested the day its file exists."""

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from mergeability.members import declared, fixed_set
from mergeability.metrics.catalogue import CATALOGUE, CATEGORIES, PAPER, WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.metrics.traits import Traits, traits_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conf" / "metric"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if "\n_target_:" in path.read_text())
# The sets of version 0.1.0, in the order of their columns: none of these may get lost.
PUBLISHED = json.loads((ROOT / "tests/published/members_0.1.0.json").read_text())["sets"]["metric"]
KNOWN = [*PUBLISHED["all"], *PUBLISHED["shared"]]

every_metric = pytest.mark.parametrize("name", MEMBERS)


def options(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def function(name):
    module, _, attribute = options(name)["_target_"].rpartition(".")
    return getattr(import_module(module), attribute)


def member(name):
    keywords = {key: value for key, value in options(name).items() if not key.startswith("_")}
    return lambda profiles: function(name)(profiles, **keywords)


@pytest.fixture
def table_of(make_profiles):
    def table(models, **options):
        return measure(make_profiles(models, **options), {name: member(name) for name in MEMBERS})

    return table


def test_the_catalogue_is_the_folder_in_the_published_order():
    assert sorted(CATALOGUE) == MEMBERS
    assert list(CATALOGUE)[: len(KNOWN)] == KNOWN
    assert list(CATALOGUE)[len(KNOWN) :] == sorted(set(CATALOGUE) - set(KNOWN))
    assert len(KNOWN) == 28 + 7 + 6
    assert list(PAPER) == list(fixed_set("metric", "paper")) == PUBLISHED["paper"]
    assert list(WEIGHT_SPACE) == PUBLISHED["weights"]
    assert list(fixed_set("metric", "minimal")) == PUBLISHED["minimal"]
    assert [name for name, one in CATALOGUE.items() if one.published] == PUBLISHED["paper"]


@every_metric
def test_a_metric_is_its_file_and_what_its_function_declares(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith(f"# @package metric.{name}\n")
    assert options(name)["_partial_"] is True
    entry = CATALOGUE[name]
    assert entry.metric.func is function(name)
    assert entry.metric.keywords == {
        key: value for key, value in options(name).items() if not key.startswith("_")
    }
    traits = entry.traits
    assert traits.category in {*CATEGORIES, "sign"} or name not in KNOWN
    assert traits.low < traits.high
    assert traits.equal is None or traits.low <= traits.equal <= traits.high
    # What command lines read from the source is what the function has: it must be decorated, and by literals.
    assert Traits(**declared(options(name)["_target_"])).with_options(options(name)) == traits


def test_a_function_without_declaration_has_no_range():
    traits = traits_of(lambda profiles: np.zeros((2, 2)))
    assert (traits.low, traits.high, traits.equal) == (-math.inf, math.inf, None)
    assert not traits.needs_data
    assert not traits.per_pair


@every_metric
def test_a_metric_needs_data_exactly_where_it_says_so(make_profiles, five_models, name):
    profiles = make_profiles(five_models, with_views=False)
    if CATALOGUE[name].traits.needs_data:
        with pytest.raises(ValueError, match="images"):
            CATALOGUE[name].metric(profiles)
    else:
        assert CATALOGUE[name].metric(profiles).shape == (5, 5)
    known = name.startswith(("activation", "encoder", "input", "shared"))
    assert name not in KNOWN or CATALOGUE[name].traits.needs_data == known
    assert name not in KNOWN or CATALOGUE[name].traits.per_pair == name.startswith("shared_")


@every_metric
def test_a_metric_is_symmetric(make_profiles, five_models, name):
    matrix = member(name)(make_profiles(five_models))
    assert matrix.shape == (5, 5)
    assert matrix.dtype == np.float64
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12)
    traits = CATALOGUE[name].traits
    assert (matrix >= traits.low - 1e-5).all()
    assert (matrix <= traits.high + 1e-5 * abs(traits.high)).all() or traits.high == math.inf


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
    expected = dict.fromkeys(KNOWN, high)
    expected |= {name: low for name in KNOWN if "distance" in name or "angle" in name}
    expected |= {"singular_value_ratio": low, "sign_conflict": low}
    expected |= {name: high - chance_of(name) for name in KNOWN if name.endswith("_excess")}
    for name in KNOWN:
        if "dot_product" in name:
            assert row[name] > 0
        elif name == "subspace_overlap":
            # Its maximum is 1/√k per matrix, k clipped to the sides: two of 12 by 12 and one of 6 by 12.
            assert row[name] == pytest.approx((2 / np.sqrt(10) + 1 / np.sqrt(6)) / 3, rel=1e-5)
        else:
            assert row[name] == pytest.approx(expected[name], abs=2e-6), name
            assert CATALOGUE[name].traits.equal in (expected[name], None), name
    undeclared = {name for name in KNOWN if CATALOGUE[name].traits.equal is None}
    assert undeclared == {
        name for name in KNOWN if name.endswith(("dot_product", "_excess")) or name == "subspace_overlap"
    }


@every_metric
def test_two_copies_have_the_value_a_metric_declares(make_profiles, five_models, name):
    models = {"a": five_models["a"], "copy": five_models["a"]}
    value = CATALOGUE[name].metric(make_profiles(models, alike=("a", "copy")))[0, 1]
    equal = CATALOGUE[name].traits.equal
    assert np.isfinite(value) if equal is None else value == pytest.approx(equal, abs=2e-6)
