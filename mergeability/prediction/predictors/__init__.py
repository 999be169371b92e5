"""Predictors: one scikit-learn regressor per file, and what they share."""
