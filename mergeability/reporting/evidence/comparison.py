"""Read and check the jobs of a sweep over seeds and numbers of images, score each job once, and combine the scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.errors import UserError
from mergeability.metrics.catalogue import CATEGORIES, PAPER
from mergeability.prediction.pair_table import summarise_names
from mergeability.prediction.questions.evidence_comparison import (
    COLUMNS,
    KEYS,
    EvidenceScores,
    compare_evidence,
    over_seeds,
)
from mergeability.prediction.study_cache import from_columns, libraries, table_hash, to_columns
from mergeability.reporting.ablation.runs import Run, described_difference, differences, read_runs, run_config
from mergeability.store import Store

# Raise it when a score changes meaning.
_VERSION = 1
UNLABELLED, SAMPLES = "unlabelled", "samples"
_FAMILIES = {name: CATEGORIES[name] for name in ("activation", "gradient")}
# The images from which the evidence of each predictor is computed: unlabelled, or calibration images of the metrics.
IMAGES_OF = {
    **dict.fromkeys(("functional", "probe", "additive_probe"), UNLABELLED),
    **dict.fromkeys(("ridge", *_FAMILIES), SAMPLES),
}
# The numbers that the page shows first, the defaults of `profile`.
_DEFAULT = (64, 10)


@dataclass(frozen=True)
class Job:
    """Represent one job, which is the analysis of all models of one seed with given numbers of images.

    Attributes:
        folder: the folder of its tables.
        run: its tables, and conditions other than the numbers of images.
        images: the numbers of unlabelled and of calibration images that are used for each task.
        groups: name → tasks.
        store: where scores are kept.
    """

    folder: Path
    run: Run
    images: tuple[int, int]
    groups: Mapping[str, Sequence[str]]
    store: Path

    def scores(self) -> EvidenceScores:
        """Score the job's table, or find the scores in the store."""
        metrics = [name for name in PAPER if name in self.run.pairs.columns]
        if not metrics:
            raise UserError(
                f"{self.folder.name} contains none of the published metrics, which ridge requires: set "
                "metric=[paper,functional]."
            )
        key = {
            "table": table_hash(self.run.pairs),
            "groups": {name: list(tasks) for name, tasks in self.groups.items()},
            "metrics": metrics,
            "version": _VERSION,
            "libraries": libraries(),
        }

        def compute() -> dict[str, Any]:
            found = compare_evidence(self.run.pairs, metrics, self.groups, _FAMILIES)
            return {
                "scores": to_columns(found.scores),
                "without": to_columns(found.without),
                "notes": list(found.notes),
            }

        record = Store(self.store).record("evidence_scores", key, compute)
        return EvidenceScores(
            from_columns(record["scores"]), from_columns(record["without"]), tuple(record["notes"])
        )


@dataclass(frozen=True)
class EvidenceSummary:
    """Hold the comparison of all kinds of evidence.

    Attributes:
        kinds: one row per numbers of images (`unlabelled`, `samples`), group, situation, target and predictor, with
            the columns of `over_seeds`.
        images: `r` by number of images, for the predictors that depend on this number: `kind` of images, `images`,
            and the columns of r and its intervals.
        shown: the numbers of images that the page shows first.
        facts: properties shared by all jobs.
        missing: sentences on jobs and columns that are missing.
    """

    kinds: pd.DataFrame
    images: pd.DataFrame
    shown: tuple[int, int]
    facts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def summarise(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> EvidenceSummary:
    """Score the predictors on every job's pairs, and combine the scores over seeds for each number of images.

    The scores are computed from the tables of the jobs; no metric or outcome is measured again.

    Args:
        folder: of the sweep; jobs that began there and did not finish are named.
        run_folders: folders of the finished jobs.
        beside: folders of the jobs of an earlier sweep. If two jobs have the same seed and numbers of images, the later
            job is used. Earlier jobs with another suite, model, α, … are left out and named.

    Returns:
        The comparison.

    Raises:
        UserError: no job has merged anything, or jobs differ in more than the seed and the numbers of images.
    """
    jobs = _read_all(run_folders)
    if not jobs:
        raise UserError(
            "None of these runs has merged anything: there is no evidence to compare. Set merge=…."
        )
    last = jobs[-1].run
    for job in jobs:
        if differences(job.run, last):
            raise UserError(
                "Jobs can be compared only if they agree in all settings except the seed and the numbers of images. "
                f"{job.folder} and {jobs[-1].folder} differ in {described_difference(job.run, last, ' and ')}."
            )
    earlier = _read_all(beside)
    others = Counter(
        described_difference(job.run, last, ", here ") for job in earlier if differences(job.run, last)
    )
    jobs = [*(job for job in earlier if not differences(job.run, last)), *jobs]
    found = {(job.images, job.run.seed): job for job in jobs}
    scores = {key: job.scores() for key, job in found.items()}
    seeds = sorted({seed for _, seed in found})
    sizes = sorted({images for images, _ in found})
    kinds = []
    for unlabelled, samples in sizes:
        own = {
            seed: scores[(unlabelled, samples), seed]
            for seed in seeds
            if ((unlabelled, samples), seed) in scores
        }
        kinds.append(over_seeds(own).assign(**{UNLABELLED: unlabelled, SAMPLES: samples}))
    notes = list(dict.fromkeys(note for one in scores.values() for note in one.notes))
    conditions = last.conditions
    return EvidenceSummary(
        pd.concat(kinds, ignore_index=True)[[UNLABELLED, SAMPLES, *COLUMNS]],
        _against_images(scores),
        _DEFAULT if _DEFAULT in sizes else sizes[-1],
        (
            f"suite {conditions['suite']}, model {conditions['model']}, {len(conditions['tasks'])} tasks, "
            f"{len(conditions['pairs'])} pairs, {len(found)} analyses; seeds {', '.join(map(str, seeds))}",
            *notes,
        ),
        (
            *_missing(folder, found, seeds, sizes),
            *(
                f"Earlier analyses with other settings, {why}, are left out: {count}."
                for why, count in others.items()
            ),
        ),
    )


def _read_all(folders: Sequence[Path]) -> list[Job]:
    return [job for job in map(_read, map(Path, folders)) if job is not None]


def _read(folder: Path) -> Job | None:
    """Read the files of an analysis; return None if it merged nothing."""
    runs = read_runs([folder])
    if not runs:
        return None
    config = run_config(folder)
    groups = config.get("task_groups") or {"all": list(runs[0].models["task"])}
    conditions = {"setting": runs[0].setting, **runs[0].conditions}
    unlabelled, samples = (int(conditions.pop(f"profile.{name}")) for name in (UNLABELLED, SAMPLES))
    run = replace(runs[0], conditions=conditions)
    return Job(folder, run, (unlabelled, samples), groups, Path(config["paths"]["store"]))


def _against_images(scores: Mapping[tuple[tuple[int, int], int], EvidenceScores]) -> pd.DataFrame:
    """Average r over seeds for each number of the images from which a predictor's evidence is computed."""
    parts = []
    for position, kind in enumerate((UNLABELLED, SAMPLES)):
        predictors = [name for name, images in IMAGES_OF.items() if images == kind]
        for count in sorted({images[position] for images, _ in scores}):
            # Jobs that differ in the other number of images have the same evidence of this kind.
            own = {
                seed: EvidenceScores(_of(one.scores, predictors), _of(one.without, predictors))
                for (images, seed), one in scores.items()
                if images[position] == count
            }
            parts.append(over_seeds(own).assign(kind=kind, images=count))
    columns = ["kind", "images", *KEYS, "r", "r_low", "r_high", "seed_low", "seed_high", "seeds"]
    return pd.concat(parts, ignore_index=True)[[*columns, "bias", "mae"]]


def _of(frame: pd.DataFrame, predictors: Sequence[str]) -> pd.DataFrame:
    return frame[frame["predictor"].isin(list(predictors))]


def _missing(
    folder: Path,
    found: Mapping[tuple[tuple[int, int], int], Job],
    seeds: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> list[str]:
    sentences = []
    began = sorted(path.parent for path in Path(folder).rglob(".hydra") if path.is_dir())
    unfinished = [str(path.relative_to(folder)) for path in began if not (path / "run.json").is_file()]
    if unfinished:
        sentences.append(
            f"These jobs did not finish: {summarise_names(unfinished)}. The last lines of the command's output show "
            "why. If models of a seed are missing, train them, or set train.missing=true."
        )
    lacking = [
        f"seed {seed} with {unlabelled} unlabelled and {samples} calibration images"
        for unlabelled, samples in sizes
        for seed in seeds
        if ((unlabelled, samples), seed) not in found
    ]
    if lacking:
        sentences.append(f"Some seeds are missing: there is no analysis of {summarise_names(lacking)}.")
    if len(seeds) < 2:
        sentences.append(f"Only seed {seeds[0]} was analysed, so there are no intervals over seeds.")
    return sentences
