"""Compare fine-tuning settings: read the runs of all settings, check that the runs are comparable, and write a page."""
