import logging
from functools import partial

import numpy as np
import pytest

from mergeability.errors import UserError
from mergeability.examples import tiny_task_vectors
from mergeability.metrics import gram
from mergeability.metrics.catalogue import CATEGORIES, PAPER, WEIGHT_SPACE
from mergeability.metrics.measure import measure


def test_the_table_has_all_pairs_in_task_order(make_profiles, five_models):
    profiles = make_profiles({task: five_models[task] for task in "cab"})
    table = measure(profiles)
    assert list(table.index) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert table.index.names == ["task_a", "task_b"]
    assert list(table.columns) == list(PAPER)
    np.testing.assert_array_equal(
        table["activation_dot_product"], profiles.gram("activation")[[0, 0, 1], [1, 2, 2]]
    )
    assert table.attrs == {"failures": [], "undefined": []}


def test_without_data_the_18_of_weight_space_are_measured(make_profiles, five_models):
    profiles = make_profiles(five_models, with_views=False)
    assert (
        list(measure(profiles).columns) == list(measure(profiles.task_vectors).columns) == list(WEIGHT_SPACE)
    )
    assert len(WEIGHT_SPACE) == 18
    with pytest.raises(UserError, match=r"1 of the 1 metrics, such as x, require images and heads"):
        measure(profiles, {"x": partial(gram.dot_product, view="activation")})
    # A function that declares nothing is found out when it asks.
    with pytest.raises(UserError, match=r"Metric x failed.*require images"):
        measure(profiles, {"x": lambda given: given.gram("activation")})


def test_metrics_are_chosen_by_name():
    vectors = tiny_task_vectors(cars=[1, 0], svhn=[0, 2], dtd=[3, 3])
    table = measure(vectors, ["weight_space_angle", "task_vector_dot_product"])
    assert list(table.columns) == ["weight_space_angle", "task_vector_dot_product"]
    pairs = [("cars", "svhn"), ("cars", "dtd"), ("svhn", "dtd")]
    assert [table.loc[pair, "task_vector_dot_product"] for pair in pairs] == [0, 3, 6]


def test_categories_hold_every_metric_once():
    named = [name for names in CATEGORIES.values() for name in names]
    assert sorted(named) == sorted(PAPER)
    assert len(named) == len(set(named)) == 28


def test_gradient_cosines_and_dot_products_have_one_sign(make_profiles, five_models):
    table = measure(make_profiles(five_models))
    for name in ("encoder_gradient", "input_gradient", "activation"):
        cosine, dot = table[f"{name}_cosine_similarity"], table[f"{name}_dot_product"]
        assert (np.sign(cosine) == np.sign(dot)).all()
        assert (dot != 0).all()


def test_a_model_equal_to_the_base_is_undefined_and_reported(make_profiles, five_models, base_state):
    table = measure(make_profiles({"a": five_models["a"], "same": base_state, "b": five_models["b"]}))
    row = table.loc[("a", "same")]
    undefined = {"task_vector_cosine_similarity", "weight_space_angle", *CATEGORIES["subspace"]}
    undefined |= {name for name in CATEGORIES["effective rank"] if "layerwise" not in name}
    assert set(row.index[row.isna()]) == undefined
    assert row["task_vector_magnitude_ratio"] == row["task_vector_dot_product"] == 0
    assert row["task_vector_l2_distance"] == pytest.approx(np.sqrt(_square(five_models["a"], base_state)))
    assert row["layerwise_effective_rank"] == 2
    assert table.loc[("a", "b")].notna().all()
    assert "effective_rank has no value for 2 of 3 pairs" in table.attrs["undefined"]


def _square(model, base):
    return sum(((model[name] - base[name]).numpy().astype(float) ** 2).sum() for name in base)


def _one_wrong(value):
    def metric(profiles):
        matrix = np.array(gram.cosine_similarity(profiles, "task_vector"))
        matrix[0, 2] = matrix[2, 0] = value
        return matrix

    return metric


def test_a_value_outside_its_range_is_an_error(make_profiles, five_models, monkeypatch, caplog):
    profiles = make_profiles(five_models, with_views=False)
    wrong = np.array(profiles.layer_grams("task_vector"))
    wrong[:, 0, 2] *= 100
    monkeypatch.setattr(profiles, "gram", lambda view: wrong.sum(0))
    metrics = {"cosine": partial(gram.cosine_similarity, view="task_vector")}
    with pytest.raises(
        UserError, match=r"Metric cosine of a and c is -?\d+\.\d+, outside its range \[-1, 1\]"
    ):
        measure(profiles, metrics)
    with caplog.at_level(logging.WARNING):
        table = measure(profiles, metrics, on_error="nan")
    assert list(table.index[table["cosine"].isna()]) == [("a", "c")]
    assert len(table.attrs["failures"]) == 1
    assert "Metric cosine of a and c" in caplog.text


def test_infinity_is_never_a_value(make_profiles, five_models):
    profiles = make_profiles(five_models, with_views=False)
    with pytest.raises(UserError, match="mine of a and c is inf"):
        measure(profiles, {"mine": _one_wrong(np.inf)})
    assert np.isnan(measure(profiles, {"mine": _one_wrong(np.nan)}).loc[("a", "c"), "mine"])


def test_a_failed_metric_stops_or_is_nan(make_profiles, five_models):
    def failing(profiles):
        raise UserError("no such thing.")

    profiles = make_profiles(five_models, with_views=False)
    with pytest.raises(UserError, match="Metric broken failed for a, b, c, d, e: no such thing"):
        measure(profiles, {"broken": failing})
    table = measure(profiles, {"broken": failing, "fine": _one_wrong(0.5)}, on_error="nan")
    assert table["broken"].isna().all()
    assert table["fine"].notna().all()
    assert table.attrs["failures"] == ["Metric broken failed for all pairs: no such thing."]


def test_defects_of_a_metric_are_not_swallowed(make_profiles, five_models):
    profiles = make_profiles(five_models, with_views=False)
    with pytest.raises(ZeroDivisionError):
        measure(profiles, {"broken": lambda _: 1 / 0}, on_error="nan")
    with pytest.raises(UserError, match="5×5 matrix"):
        measure(profiles, {"small": lambda _: np.zeros((2, 2))})


def test_one_model_is_no_pair(make_profiles, five_models):
    with pytest.raises(UserError, match="at least two"):
        measure(make_profiles({"a": five_models["a"]}, with_views=False))
    with pytest.raises(UserError, match="on_error"):
        measure(make_profiles(five_models, with_views=False), on_error="ignore")
