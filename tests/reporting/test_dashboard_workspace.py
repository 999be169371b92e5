"""The workspace and the report of a W&B project are built without a network; without an account nothing is saved."""

import json

import pytest

from mergeability.commands.dashboard import main
from mergeability.errors import UserError
from mergeability.reporting import logged_names as names
from mergeability.reporting.dashboard import workspace as module

pytest.importorskip("wandb_workspaces")
# wandb-workspaces 0.4 with pydantic 2, on its import.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style `@validator` validators are deprecated")

PROJECT = module.Project.parse("team/project", ["ties", "tsv"])
PANELS = {
    "Merged accuracy": [
        "Normalised accuracy by λ", "Normalised accuracy by penalty", "Normalised accuracy by seed", "Worst pair",
        "Penalty, λ, seed and every method", "ties against λ", "tsv against λ",
    ],
    "Every pair": ["Heat maps of pairs", "Tables of pairs"],
    "Merged accuracy against single-task accuracy": [
        "ties: merged accuracy against single-task accuracy", "tsv: merged accuracy against single-task accuracy",
    ],
    "Predicted outcomes against measured outcomes": [
        "Predicted outcomes against measured outcomes", "r of ridge for one new task", "r of ridge for two new tasks",
    ],
    "Metrics that predict the outcomes of each method": ["Coefficients", "Agreement of methods", "Table of agreement"],
    "Training runs": [
        "Test accuracy by task", "Test accuracy by λ", "Seconds by λ", "Peak memory by model, GiB",
    ],
    "Reports": ["Reports"],
}  # fmt: skip


@pytest.fixture(scope="module")
def specification():
    """What would be sent to W&B."""
    made = module.workspace(PROJECT)._to_model()
    assert (made.entity, made.project, made.display_name) == ("team", "project", module.NAME)
    return json.loads(made.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def test_the_panels_of_the_workspace(specification):
    found = {
        section["name"]: [panel["config"]["chartTitle"] for panel in section["panels"]]
        for section in specification["panelBankConfig"]["sections"]
    }
    assert found == PANELS


def test_panels_read_the_names_that_runs_are_logged_under(specification):
    text = json.dumps(specification, ensure_ascii=False)
    for name in (
        *(names.summarised(names.mean_outcome(target, method)) for target in ("norm_acc", "acc") for method in PROJECT.methods),
        *(names.summarised(names.worst_outcome("norm_acc", method)) for method in PROJECT.methods),
        *(names.summarised(names.correlation(protocol, "norm_acc", "ties", "ridge")) for protocol in ("loto", "l2to")),
        *names.FIGURES, names.PAIRS, names.summarised(names.OWN_ACCURACY), names.TEST_ACCURACY, names.BASE_TEST_ACCURACY, names.SECONDS,
        names.PEAK_MEMORY, names.REPORT, names.VERDICT_TEXT, names.prediction_table("fingerprints"),
    ):  # fmt: skip
        assert any(f'{before}{name}"' in text for before in ('"', "summary:", "summary_metrics.")), name
    for setting in ("reg.value.lambda", "reg.value.name", "task.value.name", "model.value.name"):
        assert setting in text, setting


def test_merged_accuracy_is_grouped_by_strength_penalty_and_seed(specification):
    bars = specification["panelBankConfig"]["sections"][0]["panels"][:3]
    assert [bar["config"]["groupBy"] for bar in bars] == ["reg.value.lambda", "reg.value.name", "seed.value"]
    assert {tuple(bar["config"]["metrics"]) for bar in bars} == {
        ("summary_metrics.norm_acc_ties/mean.max", "summary_metrics.norm_acc_tsv/mean.max")
    }
    grouping = specification["runSets"][0]["grouping"]
    assert [one["name"] for one in grouping] == ["jobType", "reg.value.name", "reg.value.lambda"]


def test_the_report_has_the_same_panels_on_runs_of_their_job_type():
    blocks = module.report(PROJECT).blocks
    headings = [block.text for block in blocks if type(block).__name__ == "H2"]
    grids = [block for block in blocks if type(block).__name__ == "PanelGrid"]
    found = {
        heading: [panel.title for panel in grid.panels] for heading, grid in zip(headings, grids, strict=True)
    }
    assert found == PANELS
    kinds = {heading: grid.runsets[0].filters for heading, grid in zip(headings, grids, strict=True)}
    assert "'train'" in str(kinds.pop("Training runs"))
    assert all("'analyze'" in str(kind) for kind in kinds.values())
    assert {(grid.runsets[0].entity, grid.runsets[0].project) for grid in grids} == {("team", "project")}


@pytest.mark.parametrize("path", ["project", "/project", "team/", "a/b/c", ""])
def test_a_project_is_entity_slash_name(path):
    with pytest.raises(UserError, match=r"Expected ENTITY/PROJECT, such as my-team/mergeability, got '"):
        module.Project.parse(path, ["ties"])


def test_without_an_account_nothing_is_saved(monkeypatch, tmp_path, capsys):
    import wandb
    import wandb.errors

    def refuse(**_options: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert main(["--wandb", "team/project"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: A dashboard in Weights & Biases needs an account: set WANDB_API_KEY")
    assert error.count("\n") == 1


def test_without_a_network_nothing_is_saved(monkeypatch, capsys):
    import wandb
    import wandb.errors

    def silent(**_options: object) -> None:
        raise wandb.errors.AuthenticationError("Failed to verify\ncredentials.")

    monkeypatch.setattr(wandb, "Api", silent)
    assert main(["--wandb", "team/project", "--methods", "ties"]) == 1
    assert (
        capsys.readouterr().err == "Error: Weights & Biases cannot be used: Failed to verify credentials.\n"
    )


def test_what_is_saved_and_where_it_is(monkeypatch, capsys):
    import wandb
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    saved = []
    monkeypatch.setattr(wandb, "Api", lambda **_options: None)
    for kind in (workspaces.Workspace, reports.Report):
        monkeypatch.setattr(kind, "save", lambda self: saved.append(type(self).__name__))
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://example.org/{type(self).__name__}"))
    assert main(["--wandb", "team/project"]) == 0
    assert saved == ["Workspace", "Report"]
    assert capsys.readouterr().out == (
        "workspace: https://example.org/Workspace\nreport: https://example.org/Report\n"
    )


def test_a_workspace_without_methods_is_refused():
    with pytest.raises(UserError, match=r"A workspace needs merge methods: name some with --methods\."):
        module.Project.parse("team/project", [])


def test_groups_name_their_panels():
    assert {one.title: one.titles for one in module.groups(PROJECT)} == PANELS


@pytest.mark.parametrize("error", ["Error", "OSError", "ValueError"])
def test_a_dashboard_that_is_not_saved_is_told_in_one_sentence(monkeypatch, error):
    import wandb
    import wandb.errors
    import wandb_workspaces.workspaces as workspaces

    def refuse(_self):
        raise {"OSError": OSError, "ValueError": ValueError}.get(error, wandb.errors.Error)(
            "project\nis full"
        )

    monkeypatch.setattr(wandb, "Api", lambda **_options: None)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    with pytest.raises(UserError) as raised:
        module.save(PROJECT)
    assert (
        str(raised.value) == "Weights & Biases did not save the dashboard of team/project: project is full."
    )
