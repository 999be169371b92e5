"""Tables of a study in addition to the scores, one per module."""
