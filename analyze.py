"""Analyse merges of fine-tuned models, for example by `python analyze.py -m merge=ties,ta`; see `--help`."""

import hydra
from omegaconf import DictConfig

from mergeability.commands import analyze, run
from mergeability.commands.ending import end_after


@hydra.main(version_base="1.3", config_path="conf", config_name="analyze")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run the analysis described by the configuration; write its tables and report to the run folder."""
    return analyze.job(cfg)


if __name__ == "__main__":
    end_after(run.run, main)
