"""Fine-tune one model: `python train.py task=digits model=clip_mini reg.lambda=0.01`; `--help` says more."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mergeability import entry
from mergeability.finetuning.finished import finished_card

logger = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Train unless it is done; what the configuration names as `run` does the training."""
    if cfg.doctor:
        entry.examine(cfg)
        return
    folder, settings = Path(cfg.folder), entry.settings(cfg)
    if cfg.base is not None:
        settings["base_sha256"] = entry.base_hash(cfg)
    if cfg.get("source") is not None:
        settings["source_sha256"] = entry.source_hash(cfg.source)
    if finished_card(folder, settings, overwrite=cfg.overwrite):
        logger.info("Already finished: %s (overwrite=true trains again)", folder)
        return
    entry.quiet_lightning()
    with entry.loggers(cfg) as loggers:
        train = hydra.utils.instantiate(cfg.run, _partial_=True, _convert_="all")
        train(loggers=loggers, record=settings)


if __name__ == "__main__":
    entry.run(main)
