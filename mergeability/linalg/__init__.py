"""Compute Gram matrices, decompositions and polar factors of large matrices."""
