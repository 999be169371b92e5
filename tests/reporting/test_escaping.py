"""Names of tasks, models and files mean nothing where they are shown: in terminals, spreadsheets, figures and paths."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from mergeability.checks import check_path_part, is_path_part
from mergeability.commands.terminal import PlainFormatter
from mergeability.errors import UserError, printable, short, shown
from mergeability.pipeline.table_files import read_pairs
from mergeability.prediction.csv_files import csv_text, read_csv
from mergeability.reporting.figures import heat_maps, prediction
from mergeability.reporting.page import figure_block

EVIL = ["=1+1", "+1", "-a", "@SUM(A1)", "\t=1", "'=1", "plain", "a-b", "'quoted'"]


def test_cells_that_a_spreadsheet_would_compute_are_quoted_and_read_again(tmp_path):
    frame = pd.DataFrame({"=name": EVIL, "x": np.arange(9.0) - 4})
    lines = csv_text(frame).splitlines()
    for line in lines:
        assert line.lstrip('"')[0] not in "=+-@\t", line
    assert [float(line.rpartition(",")[2]) for line in lines[1:]] == frame["x"].tolist(), "numbers stay"
    (tmp_path / "t.csv").write_text(csv_text(frame))
    pd.testing.assert_frame_equal(read_csv(tmp_path / "t.csv"), frame, check_dtype=False)
    assert csv_text(frame.set_index("=name"), index=True).splitlines()[1].startswith("'=1+1,")


def test_a_table_that_was_written_so_is_read_as_a_table_of_pairs(tmp_path):
    frame = pd.DataFrame({"task_a": ["=1+1", "-b"], "task_b": ["@c", "'=d"], "x": [-0.5, 2.0]})
    (tmp_path / "t.csv").write_text(csv_text(frame))
    pd.testing.assert_frame_equal(read_pairs(tmp_path / "t.csv").frame, frame, check_dtype=False)


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\x07", "a\rb", "\x9b31m", "a\u202eb", "\udcff"])
def test_control_characters_are_escaped_in_the_terminal(text):
    record = logging.LogRecord("x", logging.INFO, "x", 1, "read %s", (text,), None)
    for written in (PlainFormatter("%(message)s").format(record), printable(text), shown(text), short(text)):
        assert written.isprintable(), written
        assert "\\" in written


@pytest.mark.parametrize("text", ["a\nb\tc", "naïve 模型", "no-break\xa0space", "😀"])
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


def test_the_sentence_of_a_command_is_escaped(command, tmp_path):
    ended = command(
        "analyze", "suite=table", "suite.table='a\x1b[31m.csv'", f"paths.root={tmp_path}", "logger=none"
    )
    assert ended.code == 1
    assert "\x1b" not in ended.output
    assert "a\\x1b[31m.csv" in ended.output


NAME = '<a href="javascript:alert(1)">%{x} & {y}</a>'


def test_names_in_figures_are_no_markup():
    matrix = np.array([[1.0, 0.5], [0.5, 1.0]])
    predictions = pd.DataFrame(
        {"task_a": [NAME], "task_b": ["b"], "held_out": [NAME], "measured": [0.5], "predicted": [0.4]}
    )
    plots = [
        heat_maps.matrix_heat_map(matrix, [NAME, "b"], name=NAME),
        prediction.predicted_against_measured(predictions, "accuracy"),
    ]
    block = figure_block("x", {"": plots})
    figures = json.loads(block.partition('id="x-figures">')[2].partition("</script>")[0])["figures"][""]
    escaped = '&lt;a href="javascript:alert(1)"&gt;%{x} &amp; {y}&lt;/a&gt;'
    held = json.loads(block.partition('id="x-figures">')[2].partition("</script>")[0])
    assert figures[0]["data"][0]["x"] == {"shared": 0}, "x and y are the same names"
    assert held["shared"][0] == [escaped, "b"]
    assert figures[0]["data"][0]["hovertemplate"].count("<") == 3, "a line break and the two tags of <extra>"
    assert figures[0]["data"][0]["hovertemplate"].count("%{") == 3, "x, y and z, none of the name's"
    assert figures[1]["data"][0]["text"] == [f"{escaped} + b"]
    assert figures[1]["data"][0]["customdata"] == [escaped]


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "..", ".", "", " ", "a\nb", "a\x1b", "x" * 201])
def test_names_that_lead_elsewhere_are_refused(name):
    assert not is_path_part(name)
    with pytest.raises(UserError, match="to be a valid file name"):
        check_path_part("name of a task", name)


@pytest.mark.parametrize("name", ["svhn", "oxford iiit-pet", "模型", "a.b", "..a", "x" * 200])
def test_other_names_are_names_of_files(name):
    check_path_part("name of a task", name)
