"""The list of all runs and the link to the last one."""

import json
import re
from html import unescape

import pandas as pd
import pytest

from mergeability.commands.folders import _Claim, list_run
from mergeability.errors import UserError
from mergeability.pipeline.result import Analysis
from mergeability.prediction.examples import example_pairs
from mergeability.reporting import index, save
from mergeability.reporting.cross_method import write_summary
from mergeability.reporting.index import record_run
from mergeability.reporting.run_lines import run_lines

EVIL = "</a><img src=x onerror=alert(1)>&\u202e"


def finished(folder, title="Six tasks", at="2026-01-01T00:00:00+00:00", **facts):
    analysis = Analysis(title, example_pairs(), ["cosine"], ["ties"], run={"finished_at": at, **facts})
    save(analysis, folder)
    return folder


def links(page):
    return [unescape(one) for one in re.findall(r'href="([^#"][^"]*)"', page.read_text(encoding="utf-8"))]


def test_the_page_lists_all_runs_the_last_one_first(tmp_path):
    finished(tmp_path / "demo", "Old", "2026-01-01T10:00:00+00:00", command="python analyze.py suite=mini")
    last = finished(tmp_path / "runs/analyze/b", "New", "2026-01-02T10:00:00+00:00")
    (tmp_path / "runs/analyze/unfinished").mkdir()
    finished(tmp_path / "store/x", "Hidden")
    assert record_run(last, tmp_path, tmp_path / "runs")
    page = tmp_path / "index.html"
    assert links(page) == ["runs/analyze/b/report.html", "demo/report.html"]
    text = page.read_text(encoding="utf-8")
    answer = (last / "verdict.txt").read_text().splitlines()[2]
    assert answer.startswith("Merge by ties")
    assert text.count(answer) == 2
    assert "python analyze.py suite=mini" in text
    assert "2026-01-02 10:00" in text
    assert all((tmp_path / link).is_file() for link in links(page))


def test_latest_leads_to_the_last_run_and_can_be_moved_with_its_folder(tmp_path):
    runs = tmp_path / "out/runs"
    for name in ("a", "b"):
        record_run(finished(runs / name), tmp_path / "out", runs)
    (tmp_path / "out").rename(tmp_path / "moved")
    latest = tmp_path / "moved/runs/latest"
    assert latest.resolve() == (tmp_path / "moved/runs/b").resolve()
    assert (latest / "report.html").is_file()
    assert [path.name for path in latest.parent.iterdir() if path.name.startswith(".")] == []


def test_where_a_link_cannot_be_made_a_text_file_says_it(tmp_path):
    (tmp_path / "runs/latest").mkdir(parents=True)
    record_run(finished(tmp_path / "runs/a"), tmp_path, tmp_path / "runs")
    assert (tmp_path / "runs/latest.txt").read_text() == "a\n"
    assert (tmp_path / "runs/latest").is_dir()


def test_a_folder_without_results_changes_nothing(tmp_path):
    (tmp_path / "runs/a").mkdir(parents=True)
    assert not record_run(tmp_path / "runs/a", tmp_path, tmp_path / "runs")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "a"]


def test_names_and_damaged_files_do_no_harm(tmp_path):
    folder = finished(tmp_path / "runs" / "a b#c%d", EVIL, command=EVIL)
    broken = finished(tmp_path / "runs" / "broken")
    (broken / "run.json").write_text("[")
    (broken / "verdict.txt").write_bytes(b"\xff")
    record_run(folder, tmp_path, tmp_path / "runs")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "\u202e" not in text
    assert "runs/a%20b%23c%25d/report.html" in links(tmp_path / "index.html")
    assert len(run_lines(tmp_path)) == 2


def test_a_sweep_is_listed_by_its_summary_with_its_command(tmp_path):
    sweep = tmp_path / "runs/sweep"
    jobs = [finished(sweep / "0", "One"), finished(sweep / "1", "Two & more")]
    write_summary(sweep, jobs)
    (sweep / "multirun.yaml").write_text("hydra: {overrides: {task: ['merge=ties,tsv']}}")
    record_run(sweep, tmp_path, tmp_path / "runs")
    assert set(links(tmp_path / "index.html")) == {
        "runs/sweep/summary.html", "runs/sweep/0/report.html", "runs/sweep/1/report.html",
    }  # fmt: skip
    text = unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "python analyze.py -m merge=ties,tsv" in text
    assert re.search(
        r"task_arithmetic \(0\) merges best on average: mean normalised accuracy \d\d\.\d%", text
    )
    assert links(sweep / "summary.html") == ["0/report.html", "1/report.html"]
    assert "Two & more" in unescape((sweep / "summary.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("Cannot write x.")])
def test_a_list_that_cannot_be_written_never_fails_the_run(tmp_path, monkeypatch, caplog, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(index, "record_run", refuse)
    list_run(_Claim(final=tmp_path, root=(tmp_path, tmp_path)))
    assert "The list of runs was not updated" in caplog.text


def test_a_command_is_recorded_listed_and_can_be_copied(command, tmp_path):
    example_pairs().to_csv(tmp_path / "pairs.csv", index=False)
    request = (
        f"suite.table={tmp_path / 'pairs.csv'}",
        "suite.metrics=[cosine,distance]",
        "predictor=additive",
    )
    ended = command("analyze", "suite=table", *request, "logger=none", f"paths.root={tmp_path / 'out'}")
    assert ended.code == 0, ended.output
    (page,) = (tmp_path / "out/runs/analyze").glob("*/report.html")
    said = json.loads((page.parent / "run.json").read_text())["command"]
    assert said.startswith("python analyze.py suite=table suite.table=")
    assert "'suite.metrics=[cosine,distance]'" in said
    assert f'data-copy="{said}"' in unescape(page.read_text(encoding="utf-8"))
    assert (tmp_path / "out/runs/latest").resolve() == page.parent.resolve()
    assert links(tmp_path / "out/index.html") == [page.relative_to(tmp_path / "out").as_posix()]


def test_a_run_without_title_has_the_name_of_its_folder(tmp_path):
    folder = finished(tmp_path / "named")
    (folder / "report.html").write_text("")
    assert [line.title for line in run_lines(tmp_path)] == ["named"]
    assert pd.notna(run_lines(tmp_path)[0].finished)


def test_a_store_below_the_folder_is_not_searched(tmp_path):
    finished(tmp_path / "a", "Shown")
    finished(tmp_path / "kept/b", "Hidden")
    (tmp_path / "kept/store.json").touch()
    assert [line.title for line in run_lines(tmp_path)] == ["Shown"]


def test_a_page_that_cannot_be_opened_is_called_by_its_folder(tmp_path, monkeypatch):
    folder = finished(tmp_path / "a", "Six tasks")
    (line,) = run_lines(tmp_path)
    assert line.title == "Six tasks"

    def refuse(path, *_arguments, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(folder), "open", refuse)
    (line,) = run_lines(tmp_path)
    assert line.title == "a"


def test_a_page_on_another_drive_is_linked_by_its_whole_address(tmp_path, monkeypatch):
    finished(tmp_path / "a")
    (line,) = run_lines(tmp_path)

    def other_drive(_path, _start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("mergeability.reporting.run_lines.os.path.relpath", other_drive)
    assert line.link(tmp_path) == (tmp_path / "a/report.html").resolve().as_uri()
