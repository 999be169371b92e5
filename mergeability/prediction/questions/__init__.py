"""Compute the tables of a study that are not scores, such as coefficients, shares of variance and method choices."""
