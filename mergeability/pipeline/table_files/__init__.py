"""Read tables of pairs that were written by spreadsheets, databases, R or pandas."""

from mergeability.pipeline.table_files.read import PairFile, read_pairs

__all__ = ["PairFile", "read_pairs"]
