"""Validate predictors by leaving tasks out; compute scores, intervals and permutation tests."""
