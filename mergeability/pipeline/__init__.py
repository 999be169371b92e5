"""The analysis, end to end: what is asked for, the steps in order, what was found, what is saved."""
