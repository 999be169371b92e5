"""Compare merge methods over several analysis runs and, for runs of several base models, also for each base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from mergeability.files import atomic_file, read_json, read_object
from mergeability.prediction.csv_files import csv_text, read_csv
from mergeability.prediction.pair_table import TARGETS, outcome_methods
from mergeability.prediction.questions.consistency import method_consistency
from mergeability.prediction.questions.fingerprints import fingerprints
from mergeability.prediction.validation.folds import TASK_PREFIX
from mergeability.reporting.headline import best_method
from mergeability.reporting.page import Section, bullet_list, page, table
from mergeability.reporting.run_lines import RunLine, run_line
from mergeability.reporting.summaries import known_partner, method_table, number

_TITLES = {
    "n_pairs": "pairs", "mean_norm_acc": "mean normalised", "worst_norm_acc": "worst", "worst_pair": "worst pair",
    "mean_acc": "mean accuracy", "worst_acc": "worst accuracy", "median_kept_gain": "gain kept",
    "median_margin": "± 95 %", "method_a": "method", "method_b": "and", "top5_overlap": "top-5 overlap",
    "sign_agreement": "sign agreement", "rho": "ρ", "rho_low": "95 % from", "rho_high": "to",
    "rho_beyond": "ρ beyond task effects",
}  # fmt: skip


@dataclass(frozen=True)
class CrossMethodSummary:
    """Hold the comparison of the merge methods of several runs.

    Attributes:
        methods: one row per method: mean and worst outcome, and `r_<predictor>` for the default target.
        agreement: one row per target, predictor and pair of methods: the shares `top5_overlap` and `sign_agreement`,
            in [0, 1], as in `fingerprints`.
        consistency: one row per target and pair of methods: rank correlations over pairs, as in `method_consistency`.
        missing: sentences on folders or tables that could not be used.
        runs: the analyses with a report.
        models: one row per method, its mean normalised accuracy with each model, averaged over runs; empty for the runs
            of one model.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting import CrossMethodSummary
        >>> methods = pd.DataFrame({"method": ["ties"], "mean_norm_acc": [0.89]})
        >>> summary = CrossMethodSummary(methods, pd.DataFrame(), pd.DataFrame(), ("run_2 contains no outcomes.",))
        >>> summary.methods["method"].tolist(), summary.missing
        (['ties'], ('run_2 contains no outcomes.',))
    """

    methods: pd.DataFrame
    agreement: pd.DataFrame
    consistency: pd.DataFrame
    missing: tuple[str, ...] = ()
    runs: tuple[RunLine, ...] = ()
    models: pd.DataFrame = field(default_factory=pd.DataFrame)

    def save(self, folder: Path | str) -> None:
        """Write `summary.html`, `summary.md`, `summary.csv`, `fingerprints.csv` and `consistency.csv` into a folder.

        The runs of several models also have `summary_models.csv`.
        """
        folder = Path(folder)
        for name, text in {
            "summary.html": self._html(folder),
            "summary.md": self._markdown(),
            "summary.csv": csv_text(self.methods),
            "fingerprints.csv": csv_text(self.agreement),
            "consistency.csv": csv_text(self.consistency),
            **({"summary_models.csv": csv_text(self.models)} if len(self.models) else {}),
        }.items():
            with atomic_file(folder / name) as path:
                path.write_text(text, encoding="utf-8")

    def _tables(self) -> list[tuple[str, str, pd.DataFrame]]:
        """List anchor, heading and rows of each table."""
        tables = [("methods", "Which method merges best?", self.methods)]
        if len(self.models):
            tables.append(("models", "Which method gives the best merges for each model?", self.models))
        if len(self.agreement):
            tables.append(("fingerprints", "Do two methods depend on the same metrics?", self.agreement))
        if len(self.consistency):
            tables.append(
                ("consistency", "Do two methods agree on which pairs merge well?", self.consistency)
            )
        return tables

    def _markdown(self) -> str:
        parts = ["# Across methods"]
        for _, heading, frame in self._tables():
            head = f"| {' | '.join(frame.columns)} |\n|{'---|' * frame.shape[1]}"
            rows = "\n".join(
                f"| {' | '.join(_cells(row))} |" for row in frame.itertuples(index=False, name=None)
            )
            parts.append(f"## {heading}\n\n{head}\n{rows}")
        parts += [f"- {sentence}" for sentence in self.missing]
        return "\n\n".join(parts) + "\n"

    def _html(self, folder: Path) -> str:
        sections = []
        for anchor, heading, frame in self._tables():
            first = str(frame.columns[0]) if len(frame.columns) else ""
            shown = (frame.set_index(first) if first else frame).dropna(axis=1, how="all")
            texts = [name for name in shown.columns if not pd.api.types.is_numeric_dtype(shown[name])]
            columns = {
                name: _TITLES.get(name, name.replace("r_", "r of ", 1)) for name in map(str, shown.columns)
            }
            sections.append(Section(anchor, heading, table(shown, columns, first, texts, caption=heading)))
        if self.runs:
            frame = pd.DataFrame(
                {
                    "report": [one.title for one in self.runs],
                    "verdict": [one.verdict or "–" for one in self.runs],
                },
                index=[one.page.parent.name for one in self.runs],
            )
            reports = table(
                frame,
                {"report": "report", "verdict": "verdict"},
                "job",
                ["report", "verdict"],
                caption="Reports of the jobs",
                links={"report": [one.link(folder) for one in self.runs]},
            )
            wrapped = Markup('<div class="wrapped">') + reports + Markup("</div>")
            sections.append(Section("jobs", "What is the verdict of each job?", wrapped))
        if self.missing:
            sections.append(Section("missing", "What is missing?", bullet_list(self.missing)))
        lead = Markup()
        if len(self.methods) and pd.notna(self.methods["mean_norm_acc"].iloc[0]):
            best = self.methods.iloc[0]
            lead = Markup('<p class="answer">{}</p>').format(best_method(best["method"], best, "norm_acc"))
        return page("Across methods", lead, sections, plotly=False)


def cross_method_summary(run_folders: Sequence[Path | str]) -> CrossMethodSummary:
    """Read the folders of several analysis runs and compare their merge methods.

    Args:
        run_folders: each with `pairs.csv` and, if the run included prediction, `prediction.json` and
            `coefficients.csv`.

    Returns:
        The comparison. A folder without a readable table is named in `missing`. If several folders contain the same
        method, the name of the model is added to the method's name, or that of the folder if this is not enough. The
        runs of several models are grouped by model: `methods` has a column `model` and is sorted by it.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting import cross_method_summary
        >>> with TemporaryDirectory() as name:
        ...     folder = Path(name) / "run_1"
        ...     folder.mkdir()
        ...     example_pairs().to_csv(folder / "pairs.csv", index=False)
        ...     summary = cross_method_summary([folder, Path(name) / "run_2"])
        >>> summary.methods[["method", "mean_norm_acc"]].round(3).values.tolist()
        [['task_arithmetic', 0.885], ['ties', 0.884]]
        >>> len(summary.missing)
        1
    """
    found: list[tuple[str, str, pd.DataFrame, list[dict[str, Any]], pd.DataFrame]] = []
    missing: list[str] = []
    for folder in map(Path, run_folders):
        if not (folder / "pairs.csv").is_file():
            missing.append(f"{folder.name} contains no pairs.csv: the run did not finish.")
            continue
        pairs = read_csv(folder / "pairs.csv", dtype={"task_a": str, "task_b": str}, keep_default_na=True)
        found.append((folder.name, _model(folder), pairs, _records(folder), _coefficients(folder)))
        if not outcome_methods(pairs):
            missing.append(f"{folder.name} contains no outcomes.")
    every = [(model, method) for _, model, pairs, _, _ in found for method in outcome_methods(pairs)]
    several = len({model for model, _ in every}) > 1
    rows, coefficients = [], []
    outcomes: dict[tuple[str, str], dict[tuple[str, ...], float]] = {}
    for name, model, pairs, records, own in found:
        for method in outcome_methods(pairs):
            title = _title(method, model, name, every)
            labels = {"method": title, "model": model} if several else {"method": title}
            rows.append({**labels, **_outcomes(pairs, method), **_correlations(records, method)})
            coefficients.append(own[own["method"] == method].assign(method=title))
            outcomes |= _by_pair(pairs, method, title)
    methods = pd.DataFrame(rows)
    by_model = _by_model(methods, [method for _, method in every]) if several else pd.DataFrame()
    if len(methods):
        methods = methods.sort_values("mean_norm_acc", ascending=False, kind="stable", ignore_index=True)
    if several:
        methods = methods.sort_values("model", kind="stable", ignore_index=True)
    lines = [line for folder in map(Path, run_folders) if (line := run_line(folder)) is not None]
    return CrossMethodSummary(
        methods, _agreement(coefficients), _consistency(outcomes), tuple(missing), tuple(lines), by_model
    )


def _model(folder: Path) -> str:
    """Return the name of the model that a run used; empty if it is unknown, as for a table."""
    path = folder / "run.json"
    config = (read_object(path) or {}).get("config") or {}
    return str((config.get("model") or {}).get("name") or "")


def _title(method: str, model: str, folder: str, every: Sequence[tuple[str, str]]) -> str:
    """Name a method by itself if it occurs once, else with its model if that is enough, else with its folder."""
    if sum(method == other for _, other in every) == 1:
        return method
    return f"{method} ({model if model and every.count((model, method)) == 1 else folder})"


def _by_model(methods: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Average each method's mean outcome over the runs of each model, best mean over models first."""
    table = methods.assign(method=list(names)).pivot_table(
        index="method", columns="model", values="mean_norm_acc", sort=False
    )
    order = table.mean(axis=1).sort_values(ascending=False, kind="stable").index
    return table.loc[order].rename_axis(columns=None).reset_index()


def _outcomes(pairs: pd.DataFrame, method: str) -> dict[str, Any]:
    row = method_table(pairs, [method], {}).iloc[0]
    return {name: row[name] for name in row.index if name != "alpha"}


def _correlations(records: Sequence[dict[str, Any]], method: str) -> dict[str, float | None]:
    own = [record for record in known_partner(records) if record["method"] == method]
    target = next((t for t in TARGETS if any(record["target"] == t for record in own)), None)
    return {f"r_{record['predictor']}": record["r_mean"] for record in own if record["target"] == target}


def _agreement(coefficients: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = ["target", "predictor", "method_a", "method_b", "top5_overlap", "sign_agreement"]
    whole = pd.concat(coefficients) if coefficients else pd.DataFrame()
    if whole.empty:
        return pd.DataFrame(columns=columns)
    metrics = whole[~whole["metric"].str.startswith(TASK_PREFIX)]
    compared = [
        fingerprints(rows).assign(target=str(target), predictor=str(predictor))
        for (target, predictor), rows in metrics.groupby(["target", "predictor"], sort=False)
    ]
    return pd.concat(compared, ignore_index=True)[columns] if compared else pd.DataFrame(columns=columns)


def _by_pair(
    pairs: pd.DataFrame, method: str, title: str
) -> dict[tuple[str, str], dict[tuple[str, ...], float]]:
    """Take a method's outcomes under (target, title), each by its two tasks in alphabetical order."""
    # Runs may list the tasks in any order, and so name the first of a pair differently.
    ends = [tuple(sorted(map(str, pair))) for pair in pairs[["task_a", "task_b"]].to_numpy().tolist()]
    return {
        (target, title): dict(zip(ends, pairs[f"{target}_{method}"], strict=True))
        for target in TARGETS
        if f"{target}_{method}" in pairs.columns
    }


def _consistency(outcomes: Mapping[tuple[str, str], Mapping[tuple[str, ...], float]]) -> pd.DataFrame:
    ends = list(dict.fromkeys(pair for values in outcomes.values() for pair in values))
    columns = {
        f"{target}_{title}": [values.get(pair, float("nan")) for pair in ends]
        for (target, title), values in outcomes.items()
    }
    joined = pd.DataFrame({"task_a": [a for a, _ in ends], "task_b": [b for _, b in ends], **columns})
    ordered = [key for target in TARGETS for key in outcomes if key[0] == target]
    return method_consistency(joined, ordered)


def _records(folder: Path) -> list[dict[str, Any]]:
    return read_json(folder / "prediction.json") or []


def _coefficients(folder: Path) -> pd.DataFrame:
    path = folder / "coefficients.csv"
    if not path.is_file():
        return pd.DataFrame({"method": [], "target": [], "predictor": [], "metric": [], "coefficient": []})
    return read_csv(path, dtype={"method": str, "target": str, "predictor": str, "metric": str})


def _cells(row: Sequence[Any]) -> list[str]:
    return [number(value) for value in row]


def write_summary(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> Path:
    """Summarise the finished jobs of a sweep together with earlier ones; return the page's path."""
    cross_method_summary([*beside, *run_folders]).save(folder)
    return folder / "summary.html"
