"""Kinds of evidence compared over groups of tasks, seeds and numbers of images, from the jobs of a sweep."""
