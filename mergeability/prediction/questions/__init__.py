"""What a study answers besides the scores: one table per file."""
