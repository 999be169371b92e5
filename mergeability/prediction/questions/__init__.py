"""Compute those tables of a study that answer further questions, apart from the scores of predictors."""
