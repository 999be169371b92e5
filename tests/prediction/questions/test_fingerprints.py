"""Fingerprints by hand."""

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction.questions.fingerprints import fingerprints, sign_agreement, top_overlap


def test_top_overlap_counts_large_weights_of_either_sign():
    first = np.array([9.0, -8, 7, 6, 5, 1, 0.5])
    second = np.array([-9.0, 0.1, 7, 0.2, 5, 8, 6])
    assert top_overlap(first, second) == pytest.approx(3 / 5)  # positions 0, 2 and 4


def test_top_overlap_passes_over_zeros_and_short_lists():
    assert top_overlap(np.array([1.0, 0, 0, 0, 0, 0]), np.array([1.0, 0, 0, 0, 0, 0])) == pytest.approx(1 / 5)
    assert top_overlap(np.array([1.0, 2.0]), np.array([3.0, 1.0])) == 1.0
    assert np.isnan(top_overlap(np.array([]), np.array([])))


def test_sign_agreement_needs_equal_signs():
    assert sign_agreement(np.array([1.0, -2, 0, 0]), np.array([3.0, 2, 0, 1])) == pytest.approx(2 / 4)


def test_folds_are_averaged_before_methods_are_compared():
    rows = [("ties", "m", 3.0), ("ties", "m", -1.0), ("ties", "n", 1.0), ("ta", "m", 1.0), ("ta", "n", -1.0)]
    found = fingerprints(pd.DataFrame(rows, columns=["method", "metric", "coefficient"]))
    assert found.shape == (1, 4)
    assert found.loc[0, "sign_agreement"] == 0.5
    assert found.loc[0, "top5_overlap"] == 1.0


def test_without_coefficients_there_is_nothing_to_compare():
    found = fingerprints(pd.DataFrame(columns=["method", "metric", "coefficient"]))
    assert found.columns.tolist() == ["method_a", "method_b", "top5_overlap", "sign_agreement"]
    assert found.empty
