"""Compare kinds of evidence over groups of tasks, seeds, and numbers of images, using the jobs of a sweep."""
