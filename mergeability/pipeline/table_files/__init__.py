"""Tables of pairs as people have them: from spreadsheets, databases, R and pandas, read into one form."""

from mergeability.pipeline.table_files.read import PairFile, read_pairs

__all__ = ["PairFile", "read_pairs"]
