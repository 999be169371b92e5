"""The report is one file, opens offline, and leaves out what a run does not have."""

import json
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression

from mergeability.errors import UserError
from mergeability.pipeline import Analysis, verdict
from mergeability.prediction import Additive, Pearson, Ridge, Scorer, StudySettings, study_predictions
from mergeability.prediction.scorer import transfer_table
from mergeability.prediction.study import Known
from mergeability.reporting import write_report
from mergeability.reporting.figures import cell_texts, matrix_heat_map, pair_matrix

SECTIONS = {
    "merges": ["methods", "heat-maps", "pairs", "consistency"],
    "metrics": ["models", "metric-maps"],
    "prediction": ["predictors", "both-new", "beyond", "predictions", "intervals", "choice"],
    "appendix": [
        "single", "ablation", "coefficients", "fingerprints", "stable", "seeds", "set-scores", "missing", "run", "glossary",
    ],
}  # fmt: skip
PREDICTORS = {"ols": LinearRegression(), "ridge": Ridge(), "additive": Additive(), "pearson": Pearson()}


class Page(HTMLParser):
    """Collects what a browser would load, the ids, the text and the embedded data."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.contents: list[str] = []
        self._navigation = False
        self.options: list[str] = []
        self.data: dict[str, str] = {}
        self.text = ""
        self.plotly = 0
        self._script: dict[str, str | None] | None = None
        self._in = ""

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.loads += [named[a] for a in ("src", "href", "srcset", "poster") if named.get(a)]
        self.loads += [tag] if tag in ("link", "iframe", "base", "img") else []
        self.ids += [named["id"]] if named.get("id") else []
        self.sections += [named["id"]] if tag in ("section", "details") and named.get("id") else []
        self._navigation = tag == "nav" or self._navigation
        self.contents += [named["href"]] if self._navigation and tag == "a" else []
        self.options += [named["value"]] if tag == "option" else []
        self._in, self._script = tag, named if tag == "script" else self._script

    def handle_endtag(self, tag):
        self._in = ""
        self._navigation = self._navigation and tag != "nav"

    def figures(self, anchor):
        """The figures of a block by choice, with the parts that they share put back."""
        held = json.loads(self.data[f"{anchor}-figures"])

        def whole(part):
            if isinstance(part, list):
                return [whole(inner) for inner in part]
            if isinstance(part, dict):
                return (
                    whole(held["shared"][part["shared"]])
                    if set(part) == {"shared"}
                    else {k: whole(v) for k, v in part.items()}
                )
            return part

        return whole(held["figures"])

    def handle_data(self, text):
        if self._in == "script" and self._script and self._script.get("id"):
            self.data[self._script["id"]] = text
        elif self._in == "script":
            self.plotly += "plotly.js v" in text[:400]
        elif self._in != "style":
            self.text += text


def _read(path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def analysis():
    generator = np.random.default_rng(0)
    tasks = ["1", "2", "</script><b>x", "d", "e"]
    pairs = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])
    for column in ("first_metric", "second", "norm_acc_ties", "norm_acc_ta", "acc_ties", "acc_ta"):
        pairs[column] = generator.uniform(0.4, 1.0, size=len(pairs))
    pairs.loc[2, "norm_acc_ta"] = np.nan
    metrics = ["first_metric", "second"]
    sets = pd.DataFrame({"tasks": ["1+2+d", "1+d+e", "2+d+e"], "arity": 3, "norm_acc_ties": [0.5, 0.6, 0.7]})
    known = Known(categories={"one": ["first_metric"], "other": ["second"]}, sets=sets)
    settings = StudySettings(permutations=9, seeds=2)
    prediction = study_predictions(pairs, metrics, PREDICTORS, settings=settings, known=known)
    models = pd.DataFrame({"chance": 0.1, "base_accuracy": 0.4, "finetuned_accuracy": 0.9}, index=tasks)
    run = {"config": {"seed": 0, "path": "</script><script>alert(1)"}, "seconds": 1.5}
    return Analysis(
        "Five tasks",
        pairs,
        metrics,
        ["ties", "ta"],
        models,
        {"ties": 0.4},
        prediction,
        ["One thing & more."],
        run,
    )


@pytest.fixture(scope="module")
def page(analysis, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(analysis, path)
    return _read(path)


def test_it_is_one_file_that_loads_nothing(page):
    assert [link for link in page.loads if not link.startswith("#")] == []
    assert page.plotly == 1


def test_it_has_every_section_and_the_contents_lead_there(page):
    expected = [one for group, inner in SECTIONS.items() for one in (group, *inner)]
    assert [one for one in page.sections if one != "verdict-details"] == expected
    assert [link.removeprefix("#") for link in page.contents] == expected
    assert len(page.ids) == len(set(page.ids))


def test_every_link_leads_somewhere_on_the_page(page):
    assert len(page.loads) > 60
    assert {link.removeprefix("#") for link in page.loads} <= set(page.ids)


def test_the_verdict_comes_before_every_section(analysis, page):
    answer = verdict(analysis).answer
    assert answer.startswith("Merge by ")
    assert page.text.index(answer) < page.text.index("Which pairs merge well, and by which method?")


def test_every_choice_of_the_drop_downs_has_its_figures(page):
    plots = page.figures("predictions")
    assert set(plots) == {
        f"{t}|{m}|{p}" for t in ("norm_acc", "acc") for m in ("ties", "ta") for p in PREDICTORS
    }
    assert {part for key in plots for part in key.split("|")} <= set(page.options)
    assert set(page.figures("metrics")) == {"first_metric", "second"}
    merges = {f"{t}|{m}|{c}" for t in ("norm_acc", "acc") for m in ("ties", "ta") for c in ("shared", "own")}
    assert set(page.figures("merges")) == merges
    for text in page.data.values():
        json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def test_both_situations_are_told_apart_and_the_main_sentences_are_there(page):
    assert "Leave one task out: predictors are fitted without the pairs of one task" in page.text
    assert "Leave two tasks out: neither task of a pair" in page.text
    assert "beyond task effects" in page.text
    single = page.figures("single")["norm_acc"][0]["data"][0]
    assert single["y"] == ["first metric", "second"]
    assert single["x"] == ["ties", "ta"]
    assert set(page.figures("ablation")) == {
        f"{protocol}|{target}" for protocol in ("loto", "l2to") for target in ("norm_acc", "acc")
    }


def test_scores_of_an_earlier_fit_come_first_and_say_where_it_abstains(analysis, tmp_path):
    scorer = Scorer.fit(analysis.pairs, analysis.metrics, ["ties"])
    pairs = analysis.pairs.assign(second=analysis.pairs["second"].where(analysis.pairs.index != 3, 99.0))
    scores = scorer.score(pairs)
    scored = Analysis(
        "Scored",
        pairs,
        analysis.metrics,
        scorer=scorer,
        scores=scores,
        transfer=transfer_table(scorer, pairs, scores),
    )
    write_report(scored, tmp_path / "r.html")
    page = _read(tmp_path / "r.html")
    assert page.ids.index("scores") < page.ids.index("missing")
    assert "No merge was evaluated: a predictor fitted on earlier merges scored 10 pairs." in page.text
    assert "how the models relate, not how they merge" not in page.text, "it would contradict the verdict"
    assert json.loads(page.data["pairs-data"])["predicted"]["norm_acc"]["ties"]["value"][0] == pytest.approx(
        scores["score_ties"][0], rel=1e-4
    )
    assert "Will these models merge well?" in page.text
    assert scores["abstains"].tolist().count("second") == 1
    assert "ties rests" in page.text or "predictions are no better" in page.text
    assert "inside the interval" in page.text


def test_names_from_outside_cannot_become_markup(page):
    assert "</script><b>x" in page.text
    assert "</script><script>alert(1)" in page.text
    assert all("<" not in text for text in page.data.values())


def test_tasks_that_look_like_numbers_stay_names(page):
    figure = page.figures("metrics")["second"][0]
    assert figure["layout"]["xaxis"]["type"] == figure["layout"]["yaxis"]["type"] == "category"
    assert figure["data"][0]["x"][:2] == ["1", "2"]


def test_missing_things_are_listed(page):
    assert "One thing & more." in page.text
    assert "norm_acc_ta: 1 pair left out for an empty cell (1-d)" in page.text


def test_a_heat_map_holds_the_pairs_symmetrically_and_nothing_else(analysis):
    matrix = pair_matrix(analysis.pairs, "norm_acc_ta", analysis.tasks)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isnan(np.diagonal(matrix)).all()
    assert np.isnan(matrix[0, 3])
    row = analysis.pairs.iloc[5]
    assert (
        matrix[analysis.tasks.index(row["task_b"]), analysis.tasks.index(row["task_a"])] == row["norm_acc_ta"]
    )


def test_values_of_both_signs_get_a_scale_centred_on_zero():
    trace = matrix_heat_map(np.array([[np.nan, -0.2], [0.7, np.nan]]), ["a", "b"]).data[0]
    assert (trace.zmin, trace.zmax) == (-0.7, 0.7)
    trace = matrix_heat_map(np.array([[np.nan, 0.2], [0.7, np.nan]]), ["a", "b"]).data[0]
    assert (trace.zmin, trace.zmax) == (0.2, 0.7)


def test_agreement_about_pairs_is_drawn_method_by_method_on_one_scale(analysis, page):
    plots = page.figures("consistency")
    assert set(plots) == {"norm_acc", "acc"}
    for target, maps in plots.items():
        both = analysis.pairs.dropna(subset=[f"{target}_ties", f"{target}_ta"])
        rho = spearmanr(both[f"{target}_ties"], both[f"{target}_ta"])[0]
        (first,), (second,) = (one["data"] for one in maps)
        assert first["x"] == first["y"] == second["x"] == ["ties", "ta"]
        assert first["z"] == [[1.0, pytest.approx(rho, abs=1e-3)], [pytest.approx(rho, abs=1e-3), 1.0]]
        assert first["customdata"][0][1][2] == len(both)
        assert (first["zmin"], first["zmax"]) == (second["zmin"], second["zmax"]) == (-1.0, 1.0)
        found = analysis.prediction.tables["consistency"].set_index("target").loc[target]
        assert second["z"][1][0] == pytest.approx(found["rho_beyond"], abs=1e-3)
        assert first["customdata"][1][0][:2] == pytest.approx([found["rho_low"], found["rho_high"]], abs=1e-4)
    assert "Do methods agree on which pairs merge well?" in page.text
    assert "As a table, with intervals" in page.text


def test_agreement_about_pairs_needs_no_coefficients_and_draws_the_undefined_grey(analysis, tmp_path):
    pairs = analysis.pairs.assign(norm_acc_flat=0.5)
    methods = ["ties", "ta", "flat"]
    settings = StudySettings(targets=("norm_acc",), permutations=0, seeds=0, ablation=False)
    prediction = study_predictions(pairs, analysis.metrics, {"mean": DummyRegressor()}, methods, settings)
    assert "fingerprints" not in prediction.tables
    write_report(
        Analysis("Mean", pairs, analysis.metrics, methods, prediction=prediction), tmp_path / "r.html"
    )
    page = _read(tmp_path / "r.html")
    assert "consistency" in page.ids
    assert "fingerprints" not in page.ids
    (trace,) = page.figures("consistency")["norm_acc"][0]["data"]
    assert [row[2] for row in trace["z"]] == [None] * 3
    assert [trace["z"][i][i] for i in range(2)] == [1.0, 1.0]


def test_weights_only_reports_say_how_models_relate(analysis, tmp_path):
    bare = analysis.pairs[["task_a", "task_b", "second"]]
    write_report(Analysis("Weights", bare, ["second"]), tmp_path / "r.html")
    page = _read(tmp_path / "r.html")
    groups = ["merges", "pairs", "metrics", "metric-maps", "appendix", "missing", "run"]
    assert page.sections == ["verdict-details", *groups]
    assert "No merge was evaluated" in page.text


def test_two_models_are_enough(tmp_path):
    pairs = pd.DataFrame({"task_a": ["a"], "task_b": ["b"], "cosine": [0.5], "empty": [np.nan]})
    write_report(Analysis("Two", pairs, ["cosine", "empty"]), tmp_path / "r.html")
    page = _read(tmp_path / "r.html")
    assert "compares 2 tasks, 1 pair and 2 metrics." in page.text
    assert set(page.figures("metrics")) == {"cosine"}


def test_a_table_suite_has_no_models_section(analysis, tmp_path):
    own = Analysis(
        "Table", analysis.pairs, analysis.metrics, analysis.methods, prediction=analysis.prediction
    )
    write_report(own, tmp_path / "r.html")
    anchors = [one for one in _read(tmp_path / "r.html").sections if one != "verdict-details"]
    # The study's table of sets is enough for their section.
    expected = [one for group, inner in SECTIONS.items() for one in (group, *inner)]
    assert anchors == [one for one in expected if one != "models"]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(analysis, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_report(analysis, tmp_path / "file" / "report.html")


def test_nothing_but_anchors_in_the_style_and_script():
    from importlib.resources import files

    for name in ("report.css", "report.js", "plots.js", "tools.js", "theme.js", "pairs.js", "pair_math.js"):
        assert not re.search(
            r"https?:|//cdn|@import|url\(", files("mergeability.reporting").joinpath(name).read_text()
        )


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.1278, -0.0044], ["0.13", "-0.00"]),
        ([12.34, -0.5], ["12.3", "-0.5"]),
        ([89.75, 91.2], ["89.8", "91.2"]),
        ([1234.6, 2.0], ["1235", "2"]),
        ([0.0012, -0.0004], ["1.2e-03", "-4.0e-04"]),
        ([5.2e6, 1.0], ["5.2e+06", "1.0e+00"]),
        ([0.0, 0.0], ["0.00", "0.00"]),
    ],
)
def test_cells_of_one_matrix_share_one_notation(values, texts):
    matrix = np.array([[np.nan, values[0]], [values[1], np.nan]])
    assert cell_texts(matrix) == [["", texts[0]], [texts[1], ""]]
    assert cell_texts(np.full((2, 2), np.nan)) == [["", ""], ["", ""]]
