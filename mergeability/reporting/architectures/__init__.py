"""Architectures compared over methods and seeds, from the jobs of a sweep."""
