"""The command lines `train.py` and `analyze.py`: the only package that sees Hydra and OmegaConf."""
