"""Profile, measure, merge, evaluate, predict and report: `python analyze.py -m merge=ties,ta`; `--help` says more."""

import logging

import hydra
from omegaconf import DictConfig

from mergeability import entry

logger = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="analyze")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run the analysis the configuration describes; leave its tables and its report in the run folder."""
    entry.train_missing(cfg)
    from mergeability import analysis
    from mergeability.reporting.progress import show, track

    request = hydra.utils.instantiate(cfg.analysis, _convert_="all", folder=entry.run_folder())
    found = analysis.analyse(request, track, facts={"seed": cfg.seed, "config": entry.plain(cfg)})
    report = analysis.save(found, entry.run_folder())
    entry.track_analysis(cfg, found, report)
    show(found)
    logger.info("Report: %s", entry.shown_path(report))
    return entry.objectives(cfg, found)


if __name__ == "__main__":
    entry.run(main)
