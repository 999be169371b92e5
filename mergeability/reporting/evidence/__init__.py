"""Compare kinds of evidence for each group of tasks, using the jobs of a sweep over seeds and numbers of images."""
