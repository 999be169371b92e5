"""Build a workspace and a report in Weights & Biases that show the values logged by runs.

The panels name methods, because W&B cannot list them. Figures that W&B has no panel for, such as a Pareto front, are
only on the page of `reporting.dashboard.page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeability.errors import UserError, one_line
from mergeability.reporting import logged_names as names

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as reports  # pyright: ignore[reportMissingImports]
    import wandb_workspaces.workspaces as workspaces  # pyright: ignore[reportMissingImports]

NAME = "Mergeability"
"""Of the workspace's view and of the report."""

_PROTOCOLS = {"loto": "one new task", "l2to": "two new tasks"}
# W&B's patience for an answer, in seconds.
_TIMEOUT = 10


@dataclass(frozen=True)
class Group:
    """Hold the panels that answer one question.

    Attributes:
        title: of the section.
        text: the content of the panels, in one or two sentences.
        job_type: of the runs that they read.
        panels: in reading order.
    """

    title: str
    text: str
    job_type: str
    panels: list[Any]

    @property
    def titles(self) -> list[str]:
        """The titles of the panels."""
        return [panel.title for panel in self.panels]


@dataclass(frozen=True)
class Project:
    """Hold the name of a W&B project and what its panels show.

    Attributes:
        entity: the user or team that owns it.
        name: of the project.
        methods: merge methods, as in `conf/merge`.
        predictor: the predictor whose correlations are shown.
    """

    entity: str
    name: str
    methods: Sequence[str]
    predictor: str = "ridge"

    @classmethod
    def parse(cls, path: str, methods: Sequence[str], predictor: str = "ridge") -> "Project":
        """Parse `ENTITY/PROJECT`.

        Args:
            path: the text.
            methods: merge methods, as in `conf/merge`.
            predictor: the predictor whose correlations are shown.

        Returns:
            The project.

        Raises:
            UserError: the text has another form, or there are no methods.
        """
        entity, _, name = path.partition("/")
        if not entity or not name or "/" in name:
            raise UserError(f"Expected ENTITY/PROJECT, such as my-team/mergeability, got {path!r}.")
        if not methods:
            raise UserError("A workspace needs merge methods: name some with --methods.")
        return cls(entity, name, tuple(dict.fromkeys(methods)), predictor)


def groups(project: Project) -> list[Group]:
    """Create all panels of a project; this needs no internet access."""
    wr, _ = _library()
    return [
        _merged(wr, project),
        _pairs(wr),
        _trade_off(wr, project),
        _predicted(wr, project),
        _fingerprints(wr),
        _trainings(wr),
        _answers(wr),
    ]


def workspace(project: Project) -> "workspaces.Workspace":
    """Create the workspace, with one section per question and with runs grouped by penalty and strength.

    Raises:
        UserError: `wandb-workspaces` is not installed.
    """
    _, ws = _library()
    return ws.Workspace(
        entity=project.entity,
        project=project.name,
        name=NAME,
        sections=[ws.Section(name=one.title, panels=one.panels, is_open=True) for one in groups(project)],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("JobType"), ws.Config(names.PENALTY), ws.Config(names.STRENGTH)],
            pinned_columns=[
                f"config:{_nested(names.SEED)}",
                *(
                    f"summary:{names.summarised(names.mean_outcome('norm_acc', method))}"
                    for method in project.methods
                ),
                f"summary:{names.summarised(names.OWN_ACCURACY)}",
                f"summary:{names.VERDICT_TEXT}",
            ],
        ),
    )


def report(project: Project) -> "reports.Report":
    """Create the report, with a heading, a text and panels for each question.

    Raises:
        UserError: `wandb-workspaces` is not installed.
    """
    wr, _ = _library()
    blocks: list[Any] = [wr.TableOfContents()]
    for one in groups(project):
        runs = wr.Runset(
            entity=project.entity,
            project=project.name,
            name="trainings" if one.job_type == names.TRAIN else "analyses",
            filters=f"Metric('JobType') == '{one.job_type}'",
        )
        blocks += [
            wr.H2(text=one.title),
            wr.P(text=one.text),
            wr.PanelGrid(runsets=[runs], panels=one.panels),
        ]
    return wr.Report(entity=project.entity, project=project.name, title=NAME, blocks=blocks, width="fluid")


def save(project: Project) -> Mapping[str, str]:
    """Save the workspace and the report of a project, and return their addresses.

    Raises:
        UserError: there is no account, or W&B cannot be reached or refuses.
    """
    import wandb
    import wandb.errors

    made, written = workspace(project), report(project)
    try:
        wandb.Api(timeout=_TIMEOUT)
    except wandb.errors.UsageError as error:
        raise UserError(
            "A dashboard in Weights & Biases needs an account: set WANDB_API_KEY or run `wandb login`."
            " Without an account, leave out --wandb: the same panels are then written to a file."
        ) from error
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(f"Weights & Biases cannot be used: {_told(error)}") from error
    try:
        made.save()
        written.save()
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(
            f"Weights & Biases did not save the dashboard of {project.entity}/{project.name}: {_told(error)}"
        ) from error
    return {"workspace": made.url, "report": written.url}


def _library() -> tuple[Any, Any]:
    """Import `wandb-workspaces`: the modules of reports and of workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr  # pyright: ignore[reportMissingImports]
        import wandb_workspaces.workspaces as ws  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--wandb needs wandb-workspaces. Install it: uv pip install 'mergeability[dashboards]'."
        ) from error
    return wr, ws


def _merged(wr: Any, project: Project) -> Group:
    means = [
        wr.SummaryMetric(names.summarised(names.mean_outcome("norm_acc", method)))
        for method in project.methods
    ]
    worst = [
        wr.SummaryMetric(names.summarised(names.worst_outcome("norm_acc", method)))
        for method in project.methods
    ]
    columns = [
        _column(wr, wr.Config(names.PENALTY), "penalty"),
        _column(wr, wr.Config(names.STRENGTH), "λ"),
        _column(wr, wr.Config(names.SEED), "seed"),
        *(_column(wr, mean, method) for mean, method in zip(means, project.methods, strict=True)),
    ]
    by_setting = [
        wr.BarPlot(
            title=f"Normalised accuracy by {title}",
            metrics=means,
            groupby=wr.Config(key),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            range_x=(0, None),
        )
        for key, title in ((names.STRENGTH, "λ"), (names.PENALTY, "penalty"), (names.SEED, "seed"))
    ]
    against = [
        wr.ScatterPlot(title=f"{method} against λ", x=wr.Config(names.STRENGTH), y=mean)
        for mean, method in zip(means, project.methods, strict=True)
    ]
    return Group(
        "Merged accuracy",
        "Normalised accuracy of merges of two models for each merge method, by penalty, its strength λ, and"
        " seed. The value of a run is its mean over pairs; bars show the mean of these values over runs, and"
        " whiskers show their standard deviation.",
        names.ANALYZE,
        [
            *by_setting,
            wr.BarPlot(
                title="Worst pair", metrics=worst, groupby=wr.Config(names.STRENGTH), groupby_aggfunc="mean"
            ),
            _titled(
                wr.ParallelCoordinatesPlot(title="Penalty, λ, seed and every method", columns=columns), 24
            ),
            *against,
        ],
    )


def _pairs(wr: Any) -> Group:
    return Group(
        "Every pair",
        "The outcome of every pair of tasks in each run, and the table of pairs.",
        names.ANALYZE,
        [_media(wr, "Heat maps of pairs", names.HEAT_MAP), _media(wr, "Tables of pairs", names.PAIRS)],
    )


def _trade_off(wr: Any, project: Project) -> Group:
    return Group(
        "Merged accuracy against single-task accuracy",
        "The accuracy of the models on their own tasks, and the accuracy of their merges. At each single-task"
        " accuracy, the line shows the highest merged accuracy of all runs with this or a lower single-task"
        " accuracy. In dashboard.html the points of the Pareto front are marked.",
        names.ANALYZE,
        [
            wr.ScatterPlot(
                title=f"{method}: merged accuracy against single-task accuracy",
                x=wr.SummaryMetric(names.summarised(names.OWN_ACCURACY)),
                y=wr.SummaryMetric(names.summarised(names.mean_outcome("acc", method))),
                running_ymax=True,
            )
            for method in project.methods
        ],
    )


def _predicted(wr: Any, project: Project) -> Group:
    bars = [
        wr.BarPlot(
            title=f"r of {project.predictor} for {situation}",
            metrics=[
                wr.SummaryMetric(
                    names.summarised(names.correlation(protocol, "norm_acc", method, project.predictor))
                )
                for method in project.methods
            ],
        )
        for protocol, situation in _PROTOCOLS.items()
    ]
    return Group(
        "Predicted outcomes against measured outcomes",
        "Predictions for pairs outside the training set, and their correlation with the measured outcome.",
        names.ANALYZE,
        [_media(wr, "Predicted outcomes against measured outcomes", names.PREDICTED), *bars],
    )


def _fingerprints(wr: Any) -> Group:
    return Group(
        "Metrics that predict the outcomes of each method",
        "Which metrics predict the outcome of each merge method, and how similar the"
        " coefficients of these metrics are across methods.",
        names.ANALYZE,
        [
            _media(wr, "Coefficients", names.COEFFICIENTS),
            _media(wr, "Agreement of methods", names.FINGERPRINTS),
            _media(wr, "Table of agreement", names.prediction_table("fingerprints")),
        ],
    )


def _trainings(wr: Any) -> Group:
    accuracy, base = wr.SummaryMetric(names.TEST_ACCURACY), wr.SummaryMetric(names.BASE_TEST_ACCURACY)
    by_strength = {
        "groupby": wr.Config(names.STRENGTH),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
    }
    return Group(
        "Training runs",
        "Test accuracy of the fine-tuned models and of their base model, and the duration of each training"
        " run.",
        names.TRAIN,
        [
            wr.BarPlot(title="Test accuracy by task", metrics=[accuracy, base], groupby=wr.Config(names.TASK),
                       groupby_aggfunc="mean", groupby_rangefunc="stddev"),
            wr.BarPlot(title="Test accuracy by λ", metrics=[accuracy], **by_strength),
            wr.BarPlot(title="Seconds by λ", metrics=[wr.SummaryMetric(names.SECONDS)], **by_strength),
            wr.BarPlot(title="Peak memory by model, GiB", metrics=[wr.SummaryMetric(names.PEAK_MEMORY)],
                       groupby=wr.Config(names.MODEL), groupby_aggfunc="max"),
        ],
    )  # fmt: skip


def _answers(wr: Any) -> Group:
    return Group(
        "Reports",
        "The complete report of each analysis. The column `verdict` in the list of runs contains its main"
        " result.",
        names.ANALYZE,
        [_media(wr, "Reports", names.REPORT, columns=1)],
    )


def _media(wr: Any, title: str, key: str, columns: int = 2) -> Any:
    """Show what runs logged under a name: figures, tables or pages."""
    return _titled(
        wr.MediaBrowser(title=title, media_keys=[key], num_columns=columns), 24 if columns == 1 else 12, 10
    )


def _titled(panel: Any, width: int, height: int = 8) -> Any:
    panel.layout.w, panel.layout.h = width, height
    return panel


def _column(wr: Any, metric: Any, name: str) -> Any:
    return wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name)


def _nested(setting: str) -> str:
    """Write a setting as lists of runs address it.

    Examples:
        >>> _nested("reg.lambda"), _nested("seed")
        ('reg.value.lambda', 'seed.value')
    """
    first, _, rest = setting.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _told(error: BaseException) -> str:
    """Write an error of W&B on one line, with one full stop."""
    return f"{one_line(error)}."
