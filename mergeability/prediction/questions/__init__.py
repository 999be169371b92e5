"""Tables of a study besides the scores, one per module."""
