"""The command lines `train.py`, `analyze.py` and `mergeability`: the only package that imports Hydra and OmegaConf."""

# Whoever composes a configuration needs the resolvers and the derived sets: importing either registers it.
from mergeability.commands import choices, naming, sets

__all__ = ["choices", "naming", "sets"]
