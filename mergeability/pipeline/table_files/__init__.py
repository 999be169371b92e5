"""Read tables of pairs from spreadsheets, databases, R and pandas into one form."""

from mergeability.pipeline.table_files.read import PairFile, read_pairs

__all__ = ["PairFile", "read_pairs"]
