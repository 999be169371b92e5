"""Linear algebra on large matrices: Gram matrices in blocks, decompositions, polar factors."""
