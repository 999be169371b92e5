"""Read, check and name the jobs of a sweep over architectures and seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mergeability.errors import UserError
from mergeability.metrics.catalogue import PAPER
from mergeability.prediction.architectures.analyses import Analysis, common_metrics
from mergeability.prediction.architectures.trainings import Penalised
from mergeability.prediction.csv_files import read_csv
from mergeability.prediction.pair_table import summarise_names
from mergeability.reporting.ablation.runs import Run, read_runs, run_config

# In these, architectures differ by their nature.
_OWN = ("suite", "model", "tasks", "pairs", "profile.matricize")
PLAIN = "none"


@dataclass(frozen=True)
class Job:
    """One analysis of a sweep.

    Attributes:
        folder: its folder.
        run: its tables and conditions.
        sets: merges of more than two models; empty without any.
        store: where values are cached.
    """

    folder: Path
    run: Run
    sets: pd.DataFrame
    store: Path

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.run.conditions["model"])

    @property
    def suite(self) -> str:
        """The name of the suite."""
        return str(self.run.conditions["suite"])


@dataclass(frozen=True)
class Jobs:
    """All jobs of a comparison.

    Attributes:
        plain: the pair tables of plain fine-tuning.
        penalised: the pair tables of fine-tuning with a penalty.
        sets: (architecture, seed) → merges of more than two models by plainly trained ones.
        metrics: the published metrics that every table has.
        store: where values are cached.
        facts: sentences on what was compared.
        missing: sentences on what is missing.
    """

    plain: tuple[Analysis, ...]
    penalised: tuple[Penalised, ...]
    sets: dict[tuple[str, int], pd.DataFrame]
    metrics: tuple[str, ...]
    store: Path
    facts: tuple[str, ...]
    missing: tuple[str, ...]


def read_jobs(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> Jobs:
    """Read the finished jobs of a sweep and, if given, of an earlier sweep.

    Args:
        folder: of the sweep; jobs that began there and did not finish are named.
        run_folders: folders of the finished jobs.
        beside: folders of the jobs of an earlier sweep. If two jobs have the same model, suite, training and seed, the
            later job is used. Earlier jobs with other settings are left out and named.

    Returns:
        The jobs.

    Raises:
        UserError: no job has merged plainly fine-tuned models, jobs differ in settings that comparable ones share, or
            no published metric is in every table.
    """
    jobs = _read_all(run_folders)
    if not jobs:
        raise UserError("None of these runs has merged anything: there is nothing to compare. Set merge=….")
    last = jobs[-1]
    for job in jobs:
        named = _differences(job, last)
        if named:
            raise UserError(
                "Jobs can be compared only if they agree in all settings except the architecture, the seed and the "
                "penalty. "
                f"{job.folder} and {last.folder} differ in {summarise_names(named)}."
            )
    earlier = _read_all(beside)
    others = Counter(summarise_names(_differences(job, last)) for job in earlier if _differences(job, last))
    jobs = [*(job for job in earlier if not _differences(job, last)), *jobs]
    found = {(job.model, job.suite, job.run.setting, job.run.seed): job for job in jobs}
    return _checked(folder, list(found.values()), others)


def _checked(folder: Path, jobs: Sequence[Job], others: Counter[str]) -> Jobs:
    names = _names(jobs)
    plain = [job for job in jobs if job.run.penalty == PLAIN]
    if not plain:
        raise UserError(
            "All of these runs have a penalty, but the comparison also needs plain fine-tuning. "
            "Add a run with reg=none."
        )
    for job in jobs:
        first = next(one for one in jobs if names[one.folder] == names[job.folder])
        if job.run.conditions["tasks"] != first.run.conditions["tasks"]:
            raise UserError(
                "All analyses of one architecture must have the same tasks, "
                f"but the tasks of {first.folder} and {job.folder} differ."
            )
    analyses = tuple(_analysis(job, names[job.folder]) for job in plain)
    metrics = common_metrics(analyses)
    if not metrics:
        raise UserError(
            "None of the published metrics is in every table, so there is nothing to compare: set "
            "metric=[paper,functional]."
        )
    architectures = list(dict.fromkeys(one.architecture for one in analyses))
    seeds = sorted({one.seed for one in analyses})
    sizes = {one.architecture: (len(one.tasks), len(one.pairs)) for one in analyses}
    parts = [f"{name} ({sizes[name][0]} tasks, {sizes[name][1]} pairs)" for name in architectures]
    return Jobs(
        plain=analyses,
        penalised=tuple(
            Penalised(job.run.penalty, job.run.strength, _analysis(job, names[job.folder]))
            for job in jobs
            if job.run.penalty != PLAIN
        ),
        sets={(names[job.folder], job.run.seed): job.sets for job in plain if len(job.sets)},
        metrics=metrics,
        store=jobs[-1].store,
        facts=(
            f"Architectures: {', '.join(parts)}; seeds {', '.join(map(str, seeds))}; {len(jobs)} analyses; "
            f"{len(metrics)} published metrics.",
        ),
        missing=(
            *_missing(folder, analyses, architectures, seeds),
            *_missing_metrics(analyses, metrics),
            *(
                f"Earlier analyses with other settings ({why}) are left out: {count}."
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
    path = folder / "sets.csv"
    sets = read_csv(path, dtype={"tasks": str}) if path.is_file() else pd.DataFrame()
    return Job(folder, runs[0], sets, Path(config["paths"]["store"]))


def _differences(job: Job, other: Job) -> list[str]:
    """List the settings in which two jobs differ, except settings of the architecture and methods of only one job."""
    values = other.run.conditions
    return [
        name
        for name, value in job.run.conditions.items()
        if name not in _OWN and values.get(name, value) != value
    ]


def _names(jobs: Sequence[Job]) -> dict[Path, str]:
    """Name the architecture of each job by its model, with the suite if a model has several."""
    suites: dict[str, set[str]] = {}
    for job in jobs:
        suites.setdefault(job.model, set()).add(job.suite)
    return {
        job.folder: job.model if len(suites[job.model]) == 1 else f"{job.model} on {job.suite}"
        for job in jobs
    }


def _analysis(job: Job, name: str) -> Analysis:
    metrics = tuple(
        metric for metric in PAPER if metric in job.run.pairs and job.run.pairs[metric].notna().any()
    )
    return Analysis(name, job.run.seed, job.run.pairs, metrics).sorted()


def _missing(
    folder: Path, analyses: Sequence[Analysis], architectures: Sequence[str], seeds: Sequence[int]
) -> list[str]:
    sentences = []
    began = sorted(path.parent for path in Path(folder).rglob(".hydra") if path.is_dir())
    unfinished = [str(path.relative_to(folder)) for path in began if not (path / "run.json").is_file()]
    if unfinished:
        sentences.append(
            f"{len(unfinished)} of {len(began)} jobs did not finish: {summarise_names(unfinished)}. The last lines of "
            "the command's output show why. If models are missing, train them, or set train.missing=true."
        )
    there = {(one.architecture, one.seed) for one in analyses}
    lacking = [
        f"{name} of seed {seed}" for name in architectures for seed in seeds if (name, seed) not in there
    ]
    if lacking:
        sentences.append(f"Some seeds are missing: there is no analysis of {summarise_names(lacking)}.")
    if len(seeds) < 2:
        sentences.append(
            f"Only seed {seeds[0]} was analysed. The agreement between seeds is therefore unknown, so claims about "
            "differences between methods or architectures cannot be decided. Intervals reflect the variation between "
            "tasks only."
        )
    if len(architectures) < 2:
        sentences.append(
            f"Only the architecture {architectures[0]} was analysed, so nothing is known about other architectures."
        )
    return sentences


def _missing_metrics(analyses: Sequence[Analysis], metrics: Sequence[str]) -> list[str]:
    sentences = []
    for name in dict.fromkeys(one.architecture for one in analyses):
        own = [one for one in analyses if one.architecture == name]
        lacking = [metric for metric in PAPER if metric not in metrics and metric not in common_metrics(own)]
        if lacking:
            sentences.append(
                "These metrics are left out for all architectures, because "
                f"{name} lacks them for some pairs: {summarise_names(lacking)}."
            )
    return sentences
