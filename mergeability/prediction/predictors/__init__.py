"""Predictors: one scikit-learn regressor per file, and their shared parts."""
