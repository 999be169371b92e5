"""Show many runs on one page, as an HTML file with filters or as a workspace in Weights & Biases."""
