"""Compare architectures over methods and seeds, using the jobs of a sweep."""
