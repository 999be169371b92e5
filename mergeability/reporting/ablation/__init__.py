"""Compare settings of fine-tuning: read their runs, check that they are comparable, write the page."""
