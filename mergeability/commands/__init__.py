"""Define the commands `train.py`, `analyze.py` and `mergeability`; only this package imports Hydra and OmegaConf."""

# Importing these modules registers the resolvers and derived sets, which every composed configuration needs.
from mergeability.commands import choices, naming, sets

__all__ = ["choices", "naming", "sets"]
