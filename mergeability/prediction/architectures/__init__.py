"""Compare several architectures by their pair tables, to find which results hold for all architectures."""
