"""Fine-tune a model, for example by `python train.py task=digits model=clip_mini reg.lambda=0.01`; see `--help`."""

import hydra
from omegaconf import DictConfig

from mergeability.commands import run, train
from mergeability.commands.ending import end_after


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Train the model unless it already exists; on request, check the task's images instead."""
    train.job(cfg)


if __name__ == "__main__":
    end_after(run.run, main)
