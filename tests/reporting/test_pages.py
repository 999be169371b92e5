"""What all pages have in common: one builder, the glossary, themes, the library of figures, sizes."""

import hashlib
import json
import re
from importlib.resources import files
from itertools import combinations, product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from markupsafe import Markup

from mergeability.members import members
from mergeability.pipeline import Analysis, verdict
from mergeability.prediction import PredictionResult, Ridge, StudySettings, study_predictions
from mergeability.reporting import glossary, write_report
from mergeability.reporting.first_screen import why
from mergeability.reporting.headline import headline
from mergeability.reporting.page import Group, Section, figure_block, page, paragraphs, shared_parts, table
from mergeability.reporting.summaries import method_table

PACKAGE = files("mergeability.reporting")


def of_terms(text: str) -> set[str]:
    return set(re.findall(r'href="#(term-[^"]+)"', text))


def test_text_is_escaped_and_sections_are_in_their_order():
    parts = [
        Group("one", "Which & what?", [Section("a", "<b>", paragraphs("x < y"))]),
        Section("c", "C", Markup("<i>")),
    ]
    text = page("<title>", Markup("<p>lead</p>"), parts, plotly=False)
    assert "<title>&lt;title&gt;</title>" in text
    assert "<h1>&lt;title&gt;</h1>" in text
    assert "<h3>&lt;b&gt;</h3>" in text
    assert "<p>x &lt; y</p>" in text
    places = [text.index(one) for one in ("<p>lead</p>", "<nav", 'id="one"', 'id="a"', 'id="c"', "<i>")]
    assert places == sorted(places), "on a phone the contents come below the first sentences"
    assert 'id="theme"' in text
    assert "Plotly=" not in text


def test_folded_groups_are_closed_and_keep_their_anchors():
    group = Group("g", "Details", [Section("s", "One", Markup("<p>inside</p>"))], folded=True)
    text = page("t", Markup(), [group], plotly=False)
    assert re.search(r'<details id="s" class="entry"><summary><h3>One</h3></summary>\s*<p>inside</p>', text)


def test_tables_have_captions_heads_and_regions_that_scroll_by_keyboard():
    text = table(
        pd.DataFrame({"x": [1.0], "y": ["<b>"]}, index=["ties"]), {"x": "α", "y": "pair"}, "method", ["y"]
    )
    assert text.count('scope="col"') == 3
    assert text.count('scope="row"') == 1
    assert 'tabindex="0" role="region" aria-label="Table by method: α, pair"' in text
    assert "&lt;b&gt;" in text
    assert of_terms(text) == {"term-α", "term-ties", "term-pair"}


def test_a_cell_can_be_a_link():
    frame = pd.DataFrame({"x": ["a & b", "c"]}, index=["one", "two"])
    text = table(frame, {"x": "page"}, "run", links={"x": ["a%20b.html?x=1&y", ""]})
    assert '<a href="a%20b.html?x=1&amp;y">a &amp; b</a>' in text
    assert "<td>c</td>" in text


def test_shared_parts_are_written_once_and_can_be_put_back():
    names = [f"pair {place}" for place in range(30)]
    plots = {
        key: [go.Figure(go.Scatter(x=names, y=np.arange(30.0) + shift, text=names)) for shift in (0, 1)]
        for key in "abc"
    }
    whole = {key: [json.loads(figure.to_json()) for figure in own] for key, own in plots.items()}
    held = shared_parts(whole)
    text = json.dumps(held)
    assert text.count('"pair 29"') == 1

    def back(part):
        if isinstance(part, list):
            return [back(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        if set(part) == {"shared"}:
            return back(held["shared"][part["shared"]])
        return {key: back(inner) for key, inner in part.items()}

    assert back(held["figures"]) == whole
    assert len(text) < len(json.dumps(whole)) / 2
    assert "pair 29" in figure_block("x", plots)


def test_the_glossary_has_a_paragraph_for_each_term_and_no_anchor_twice():
    text = PACKAGE.joinpath("glossary.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    headings, bodies = parts[1::2], parts[2::2]
    assert len(headings) == len(set(headings)) == len(glossary.terms())
    assert all(re.fullmatch(r"\n\S.*\n+", body) for body in bodies), "one paragraph each"
    assert glossary.terms()["term-gain-kept"].text.startswith("The share of the improvement")
    unknown = [term for term in glossary._TERMS.values() if term not in headings]
    assert unknown == []


@pytest.mark.parametrize("group", ["metric", "merge", "predictor"])
def test_every_member_is_defined_by_its_docstring(group):
    for name in members(group):
        entry = glossary.entry(name)
        assert entry is not None, name
        assert len(entry.text) > 10, name
    assert glossary.entry("ties_tuned") == glossary.entry("ties")
    assert glossary.entry("ties").text.startswith("Keep each model's largest entries")
    assert "density = 0.2" in glossary.entry("ties").text
    assert glossary.entry("no such thing") is None


def test_headings_of_means_do_not_lead_to_the_predictor_of_that_name():
    assert str(glossary.linked("mean")) == "mean"
    assert 'href="#term-mean"' in glossary.linked_name("mean")


def test_the_library_of_figures_is_the_one_that_is_described():
    data = PACKAGE.joinpath("vendor/plotly.min.js").read_bytes()
    described = PACKAGE.joinpath("vendor/README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(data).hexdigest() in described
    assert b"</script" not in data
    version = re.search(rb"plotly\.js v([\d.]+) ", data[:200])[1].decode()
    assert f"plotly.js {version}" in described
    assert f'"plotly.js": "{version}"' in PACKAGE.joinpath("vendor/package.json").read_text(encoding="utf-8")
    assert f"plotly.js {version}: MIT" in PACKAGE.joinpath("vendor/LICENSES.txt").read_text(encoding="utf-8")
    assert len(data) < 1_250_000


def test_every_kind_of_trace_that_is_drawn_is_in_the_library():
    python = "\n".join(
        path.read_text() for path in (PACKAGE / "figures").iterdir() if path.name.endswith(".py")
    )
    scripts = PACKAGE.joinpath("dashboard/panels.js").read_text(encoding="utf-8")
    drawn = {
        kind.casefold()
        for kind in re.findall(r"go\.(Bar|Box|Heatmap|Scatter\w*|Pie|Histogram\w*|Violin)\b", python)
    }
    drawn |= set(re.findall(r"add_(bar|box|heatmap|scatter\w*|pie|histogram\w*|violin)\(", python))
    drawn |= set(re.findall(r'type: "(bar|box|heatmap|scatter\w*|pie|histogram\w*|violin)"', scripts))
    entry = PACKAGE.joinpath("vendor/entry.js").read_text(encoding="utf-8")
    assert {"bar", "box", "heatmap", "scatter"} >= drawn > {"bar"}
    assert set(re.findall(r"lib/(\w+)", entry)) == {"core", "bar", "box", "heatmap"}


def tied() -> Analysis:
    """Two methods with equal normalised accuracies, the second of which is more accurate."""
    pairs = pd.DataFrame(list(combinations("abcd", 2)), columns=["task_a", "task_b"])
    values = np.linspace(0.6, 0.9, len(pairs))
    pairs = pairs.assign(norm_acc_ties=values, norm_acc_tsv=values, acc_ties=values / 2, acc_tsv=values / 1.5)
    return Analysis("t", pairs, [], ["ties", "tsv"])


def test_all_texts_name_the_same_method_even_if_two_are_equal():
    analysis = tied()
    answer = verdict(analysis)
    assert answer.recommended == "tsv"
    assert [one.method for one in answer.forecasts] == list(
        method_table(analysis.pairs, analysis.methods, {}).index
    )
    assert headline(analysis)[1].startswith("tsv merges best on average: mean normalised accuracy 75.0%")
    assert "75.0%" in answer.answer
    assert analysis.ranked_methods("acc").round(3).to_dict() == {"tsv": 0.5, "ties": 0.375}


def test_the_first_screen_gives_three_reasons_and_the_whole_verdict_folded(tmp_path):
    analysis = tied()
    write_report(analysis, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    first = text[text.index('<header class="top">') : text.index("</header>")]
    answer = verdict(analysis)
    reasons = why(analysis, answer)
    assert 1 <= len(reasons) <= 3
    for one in (answer.answer, *reasons, *(sentence for _, own in answer.parts for sentence in own)):
        assert str(Markup.escape(one)) in first, one
    assert (
        first.index(answer.answer)
        < first.index('data-figures="outcomes-figures"')
        < first.index('class="why"')
    )
    assert '<details id="verdict-details">' in first


def many(tasks: int) -> Analysis:
    """An analysis of the size of a published one: 28 metrics, six methods, seventeen predictors, none of them fitted."""
    generator = np.random.default_rng(0)
    names = [f"task_{place:02d}" for place in range(tasks)]
    pairs = pd.DataFrame(list(combinations(names, 2)), columns=["task_a", "task_b"])
    metrics, methods = (
        [f"metric_{place}" for place in range(28)],
        ["ta", "ties", "tsv", "iso_c", "average", "dare"],
    )
    columns = {name: generator.normal(size=len(pairs)) for name in metrics}
    for target, method in product(("norm_acc", "acc"), methods):
        for end in ("", "_a", "_b"):
            columns[f"{target}_{method}{end}"] = generator.uniform(0.4, 1, len(pairs))
    pairs = pd.concat([pairs, pd.DataFrame(columns)], axis=1)
    small = pairs[pairs[["task_a", "task_b"]].isin(names[:5]).all(axis=1)].reset_index(drop=True)
    settings = StudySettings(targets=("norm_acc",), permutations=0, seeds=0, ablation=False)
    study = study_predictions(small, metrics, {"ridge": Ridge()}, ["ta"], settings)
    fits = list(product(("norm_acc", "acc"), methods, (f"predictor_{place}" for place in range(17))))
    (record,) = [one for one in study.records if one["protocol"] == "loto"]
    records = [{**record, "target": t, "method": m, "predictor": p} for t, m, p in fits]
    ends = pd.concat(
        [pairs[["task_a", "task_b"]].assign(held_out=pairs[end]) for end in ("task_a", "task_b")]
    )
    measured = {
        (t, m): np.tile(pairs[f"{t}_{m}"].to_numpy(), 2) for t, m in product(("norm_acc", "acc"), methods)
    }
    predictions = pd.concat(
        [
            ends.assign(
                protocol="loto", target=t, method=m, predictor=p,
                measured=measured[t, m], predicted=measured[t, m] + generator.normal(size=len(ends)) / 20,
            )
            for t, m, p in fits
        ]
    )  # fmt: skip
    folds = pd.concat(
        [
            pd.DataFrame({"held_out": names, "r": generator.uniform(-1, 1, tasks)}).assign(
                protocol="loto", target=t, method=m, predictor=p
            )
            for t, m, p in fits
        ]
    )
    prediction = PredictionResult(records, folds, predictions)
    return Analysis("many", pairs, metrics, methods, prediction=prediction)


def test_pages_are_small(tmp_path):
    write_report(tied(), tmp_path / "small.html")
    assert (tmp_path / "small.html").stat().st_size < 1_400_000
    write_report(many(20), tmp_path / "large.html")
    text = (tmp_path / "large.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 4_000_000
    held = json.loads(text.partition('id="predictions-figures">')[2].partition("</script>")[0])
    assert len(held["figures"]) == 2 * 6 * 17


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * one for one in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize(
    "start", [":root {", ':root[data-theme="dark"] {', ':root:not([data-theme="light"]) {']
)
def test_text_can_be_read_in_every_theme(start):
    css = PACKAGE.joinpath("report.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+);", css.partition(start)[2].partition("}")[0]))
    for text, ground in product(("ink", "muted", "accent", "warn"), ("ground", "soft")):
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
