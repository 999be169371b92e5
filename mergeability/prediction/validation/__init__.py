"""Validation of predictors: protocols that leave tasks out, folds, scores, intervals, the permutation test."""
