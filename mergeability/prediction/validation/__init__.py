"""How well a predictor predicts: protocols that leave tasks out, folds, scores, intervals, the permutation test."""
