"""Several architectures compared by their pair tables: what carries over from one to another, and what does not."""
