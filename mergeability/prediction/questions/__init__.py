"""Compute the tables of a study that answer questions beyond the scores of predictors."""
