"""The command lines `train.py` and `analyze.py`: the only package that sees Hydra and OmegaConf."""

# Whoever composes a configuration needs the resolvers and the derived sets: importing either registers it.
from mergeability.commands import choices, naming, sets

__all__ = ["choices", "naming", "sets"]
