"""The command lines `train.py`, `analyze.py` and `mergeability`: the only package that imports Hydra and OmegaConf."""

# Importing these modules registers the resolvers and derived sets, which every composed configuration needs.
from mergeability.commands import choices, naming, sets

__all__ = ["choices", "naming", "sets"]
