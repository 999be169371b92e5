"""The comparison of settings of fine-tuning: runs read from disk, conditions compared, the page."""
