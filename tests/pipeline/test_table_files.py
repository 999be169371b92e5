"""Tables as spreadsheets and other programs write them: read to the same values, or refused in one sentence."""

import datetime
import gzip
import io
import sys
import zipfile
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeability.errors import UserError
from mergeability.pipeline.table_files import read_pairs
from mergeability.pipeline.table_files.text import text_rows
from mergeability.prediction import PairTable

TASKS = ["mnist", "svhn", "cars", "dtd"]


def table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    frame["cosine"] = generator.uniform(0, 0.3, len(frame)).round(4)
    frame["l2"] = generator.uniform(1, 3, len(frame)).round(4)
    frame["acc_ties"] = generator.uniform(0.3, 0.9, len(frame)).round(4)
    frame["norm_acc_ties"] = (frame["acc_ties"] / 0.95).round(4)
    return frame


FRAME = table()
TEXT = FRAME.to_csv(index=False)
LINES = TEXT.splitlines()


@pytest.fixture
def read(tmp_path):
    def run(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_pairs(path)

    return run


def test_a_missing_task_is_not_a_task_called_nan(read):
    found = read("task_a,task_b,l2\n,x,1\nnan,y,2\nx,y,3\n")
    assert not [note for note in found.notes if "accents" in note]


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def german(text):
    return text.replace(",", ";").replace(".", ",")


def each_row(change):
    return "\n".join([LINES[0], *map(change, LINES[1:])]) + "\n"


SAME = {
    "as pandas writes it": TEXT,
    "semicolons and decimal commas": german(TEXT),
    "decimal commas in quotes": FRAME.astype(str).map(lambda cell: cell.replace(".", ",")).to_csv(index=False),
    "tabs": TEXT.replace(",", "\t"),
    "bars": TEXT.replace(",", "|"),
    "blanks after commas": TEXT.replace(",", ", "),
    "blanks around all cells": TEXT.replace(",", " ,\t "),
    "carriage returns": TEXT.replace("\n", "\r\n"),
    "carriage returns alone": TEXT.replace("\n", "\r"),
    "a mark of UTF-8": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, big": "\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-32": TEXT.encode("utf-32"),
    "Excel's first line": "sep=;\r\n" + german(TEXT),
    "a delimiter at the end of each row": each_row(lambda line: line + ","),
    "and of the header": TEXT.replace("\n", ",\n"),
    "an index": FRAME.to_csv(),
    "row numbers of R": each_row(lambda line: str(LINES.index(line)) + "," + line),
    "rows of delimiters": TEXT + ",,,,,\n\n,,,,,\n",
    "comments": "# made by hand\n" + TEXT + "# the end\n",
    "a header as comment": "# " + TEXT,
    "all quoted": FRAME.to_csv(index=False, quoting=1),
    "quoted, blanks after commas": FRAME.to_csv(index=False, quoting=1).replace(",", ", "),
    "no line break at the end": TEXT.rstrip("\n"),
    "all accuracies in per cent": FRAME.assign(
        acc_ties=FRAME["acc_ties"] * 100, norm_acc_ties=FRAME["norm_acc_ties"] * 100
    ).to_csv(index=False),
    "per cent signs": FRAME.assign(acc_ties=[f"{x * 100:.2f} %" for x in FRAME["acc_ties"]]).to_csv(index=False),
    "compressed": gzip.compress(TEXT.encode()),
    "alone in an archive": zipped(table=TEXT),
}  # fmt: skip
SAID = {
    "comments": ["2 comment lines", "line 1, 9"],
    "an index": ["Skipped 1 column without a name of t.csv: 1."],
    "row numbers of R": ["row numbers"],
    "a delimiter at the end of each row": ["at the end of 6 rows"],
    "semicolons and decimal commas": ["24 numbers with a decimal comma"],
    "all accuracies in per cent": ["2 columns are in per cent and divided by 100", "acc_ties, norm_acc_ties"],
    "per cent signs": ["per cent signs in 6 cells"],
    "as pandas writes it": [],
}


@pytest.mark.parametrize("name", SAME)
def test_all_of_these_are_one_table(read, name):
    found = read(SAME[name])
    pd.testing.assert_frame_equal(found.frame, FRAME, check_dtype=False, rtol=1e-9)
    if name in SAID:
        notes = " ".join(found.notes)
        assert bool(notes) == bool(SAID[name])
        for part in SAID[name]:
            assert part in notes


def test_numbers_are_read_as_before_to_the_last_digit(read):
    """The study of a table is found in stores by its values."""
    values = np.random.default_rng(1).normal(size=300) * 10.0 ** np.arange(-150, 150)
    frame = pd.DataFrame({"task_a": map(str, range(300)), "task_b": "b", "x": values})
    text = frame.to_csv(index=False)
    assert read(text).frame["x"].tolist() == pd.read_csv(io.StringIO(text))["x"].tolist()


@pytest.mark.parametrize(
    "word", ["#N/A", "n/a", "#DIV/0!", "#NV", "NULL", "-", "\N{EN DASH}", "?", "None", "nan", ""]
)
def test_words_for_missing_values_are_missing_and_unusual_ones_are_counted(read, word):
    text = FRAME.astype({"l2": object})
    text.loc[3, "l2"] = word
    found = read(text.to_csv(index=False))
    assert np.isnan(found.frame["l2"]).tolist() == [False] * 3 + [True] + [False] * 2
    assert found.notes == (
        () if word in ("NULL", "None", "nan", "") else (f"Cells read as missing: {word} (1).",)
    )


def test_tasks_keep_their_names_whatever_they_look_like(read):
    names = ["1", "NA", "1,5", "-", 'a "b", c', "two\nlines"]
    frame = pd.DataFrame({"task_a": names, "task_b": "x", "l2": 0.5})
    assert read(frame.to_csv(index=False)).frame["task_a"].tolist() == names


def test_names_are_stripped_and_composed_and_near_ones_are_told(read):
    text = "task_a , task_b,l2\n cafe\u0301 ,x,1\ncaf\xe9,y,2\nCafe,x,3\n"
    found = read(text)
    assert found.frame["task_a"].tolist() == ["caf\xe9", "caf\xe9", "Cafe"]
    assert found.notes == ("Tasks 'caf\xe9', 'Cafe' differ only by case, blanks or accents, and count as 2 tasks.",)  # fmt: skip


def test_rows_that_are_short_are_filled_and_named(read):
    found = read("\n".join([*LINES[:3], LINES[3].rsplit(",", 2)[0], *LINES[4:]]) + "\n")
    assert found.frame["norm_acc_ties"].isna().tolist() == [False, False, True, False, False, False]
    assert (
        "1 rows of t.csv (row 3) have fewer cells than the header. The missing cells are treated as empty."
        in found.notes
    )


REFUSED = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "comments alone": ("# nothing\n", "is empty"),
    "a header alone": (LINES[0] + "\n", "a header but no rows"),
    "no pairs": ("a,b\n1,2\n", "has no column task_a, task_b. It has: a, b."),
    "other case": ("Task A,TASK_B,x\n1,2,3\n", "Rename 'Task A', 'TASK_B'"),
    "columns twice": ("task_a,task_b,x, x\na,b,1,2\n", "a column more than once: x"),
    "more cells than columns": (each_row(lambda line: line + ",0.5"), "Row 1 of t.csv has 7 cells, but the header has 6"),
    "names in the way of R": (each_row(lambda line: "row," + line), "7 cells, but the header has 6"),
    "cut": (TEXT[: TEXT.rindex(",") - 1], "seems to be truncated"),
    "an open quotation mark": (TEXT.replace("mnist", '"mnist', 1), "quotation mark"),
    "thousands": ("task_a;task_b;l2\na;b;1.234,5\n", "Column 'l2' contains '1.234,5' in row 1, a number with thousands"),
    "thousands in English": ('task_a,task_b,l2\na,b,"1,234.5"\n', "Write it without separators, as 1234.5"),
    "a thousand among numbers": ('task_a,task_b,l2\na,b,0.5\na,c,"1,234"\n', "no thousands separators"),
    "two decimal signs": (german(TEXT).replace("0,", "0.", 1), "one decimal sign"),
    "a comma or a thousand": ("task_a;task_b;l2\na;b;1,234\na;c;2,345\n", "decimal comma or a thousands separator"),
    "per cent among shares": (TEXT.replace(",0.", ",85.", 15), "per cent"),
    "neither": (FRAME.assign(acc_ties=FRAME["acc_ties"] * 1000).to_csv(index=False), "outside that range"),
    "negative": (FRAME.assign(acc_ties=-FRAME["acc_ties"]).to_csv(index=False), "Expected accuracies of 0 or more"),
    "not text": (bytes(range(256)) * 20, "is not text"),
    "zeros everywhere": (b"task_a\0\0task_b\n", "is not text. Give a CSV, Parquet or xlsx file."),
    "a header without end": ("x" * 200_000 + "\n1\n", "The header of t.csv cannot be read: field larger than field limit"),
    "an archive of two": (zipped(a=TEXT, b=TEXT), "got an archive of 2 files: a, b. Give one CSV"),
    "half of a character": (TEXT.encode("utf-16")[:-1], "is not text in"),
    "an old workbook": (b"\xd0\xcf\x11\xe0" + bytes(600), "old xls format"),
    "half of a gzip": (gzip.compress(TEXT.encode())[:60], "cannot be read as a table"),
    "half of Parquet": (b"PAR1" + bytes(50), "cannot be read as a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_table_is_refused_in_a_sentence(read, name):
    content, part = REFUSED[name]
    with pytest.raises(UserError) as raised:
        read(content)
    assert part in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_long_names_are_shortened(read):
    with pytest.raises(UserError) as raised:
        read(",".join("x" * 500 + str(i) for i in range(50)) + "\n1\n")
    assert len(str(raised.value)) < 600
    assert "and 44 more" in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No table at .*none\.csv\. Give suite\.table="):
        read_pairs(tmp_path / "none.csv")


def test_parquet_may_have_the_pair_as_index_and_text_as_numbers(tmp_path):
    pytest.importorskip("pyarrow")
    text = FRAME.assign(l2=FRAME["l2"].astype(str).str.replace(".", ",", regex=False))
    for frame in (FRAME, FRAME.set_index(["task_a", "task_b"]), FRAME.set_index("task_a"), text,
                  FRAME.astype({"task_a": "category", "l2": object})):  # fmt: skip
        frame.to_parquet(tmp_path / "t.parquet")
        found = read_pairs(tmp_path / "t.parquet").frame[list(FRAME)]
        pd.testing.assert_frame_equal(found, FRAME, check_dtype=False)
    FRAME.assign(l2=[[1.0]] * 6).to_parquet(tmp_path / "t.parquet")
    assert read_pairs(tmp_path / "t.parquet").frame["l2"].tolist() == ["[1.]"] * 6


@pytest.mark.parametrize(("index", "words"), [("run", " (run)"), (None, "")])
def test_another_index_of_parquet_is_left_out_and_said(tmp_path, index, words):
    pytest.importorskip("pyarrow")
    frame = FRAME.set_axis(pd.Index(list("uvwxyz"), name=index))
    frame.to_parquet(tmp_path / "t.parquet")
    found = read_pairs(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(found.frame, FRAME, check_dtype=False)
    assert found.notes == (f"The index of t.parquet{words} is ignored.",)


def test_empty_cells_among_the_texts_of_parquet_are_missing(tmp_path):
    pytest.importorskip("pyarrow")
    FRAME.assign(l2=["1,5", None, "2,5", "3,5", "4,5", "5,5"]).to_parquet(tmp_path / "t.parquet")
    found = read_pairs(tmp_path / "t.parquet").frame["l2"]
    np.testing.assert_array_equal(found, [1.5, np.nan, 2.5, 3.5, 4.5, 5.5])


def test_a_name_of_parquet_with_other_content_is_refused(read):
    with pytest.raises(UserError, match=r"t\.PQ is not a complete Parquet file"):
        read(TEXT, "t.PQ")


def test_parquet_without_pyarrow_names_the_extra(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(UserError, match="install the extra 'data', or give a CSV file"):
        read(b"PAR1", "t.parquet")


@pytest.fixture
def workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")

    def run(*rows):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(tmp_path / "t.xlsx")
        return read_pairs(tmp_path / "t.xlsx")

    return run


def test_titles_comments_and_dates_of_a_workbook(workbook):
    found = workbook(
        ["Pairs of May"],
        ["task_a", "task_b", "l2", "made"],
        ["# by hand"],
        [1, "1.0", 2.5, datetime.date(2026, 5, 1)],
        [2, "x", 3, "later"],
    )
    assert found.frame["task_a"].tolist() == ["1", "2"]
    assert found.frame["task_b"].tolist() == ["1.0", "x"]
    assert found.frame["l2"].tolist() == [2.5, 3]
    assert found.frame["made"].tolist() == ["2026-05-01 (a date)", "later"]
    assert found.notes == ("Skipped 2 rows of titles or comments in t.xlsx.",)


def test_a_whole_number_that_a_program_wrote_with_a_point_names_the_same_task(workbook, tmp_path):
    workbook(["task_a", "task_b", "l2"], [7, "x", 0.5])
    with zipfile.ZipFile(tmp_path / "t.xlsx") as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    assert sheet.count(b"<v>7</v>") == 1
    parts["xl/worksheets/sheet1.xml"] = sheet.replace(b"<v>7</v>", b"<v>7.0</v>")
    (tmp_path / "t.xlsx").write_bytes(zipped(**parts))
    assert read_pairs(tmp_path / "t.xlsx").frame["task_a"].tolist() == ["7"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], r"t\.xlsx is empty\. Expected a header with task_a and task_b"),
        ([["  ", None], [""]], r"t\.xlsx is empty"),
        ([["# by hand"]], r"t\.xlsx is empty"),
    ],
)
def test_a_workbook_without_a_table_is_refused(workbook, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        workbook(*rows)


def test_an_archive_with_only_the_marks_of_a_workbook_is_refused(read):
    pytest.importorskip("openpyxl")
    with pytest.raises(
        UserError, match=r"^t\.xlsx is not a complete Excel workbook \(.*\)\. Save the workbook again"
    ):
        read(zipped(**{"[Content_Types].xml": ""}), "t.xlsx")


def test_a_workbook_is_read_from_the_sheet_that_has_the_pairs(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"notes": ["by hand"]}).to_excel(book, sheet_name="notes", index=False)
        FRAME.to_excel(book, sheet_name="pairs", startrow=2)
    found = read_pairs(path)
    pd.testing.assert_frame_equal(found.frame, FRAME, check_dtype=False)
    assert "Skipped sheet notes of t.xlsx." in found.notes
    import openpyxl

    book = openpyxl.load_workbook(path)
    book["pairs"]["F5"] = "=1/2"
    book.save(path)
    with pytest.raises(UserError, match="formula without a value in row 5"):
        read_pairs(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"t\.xlsx"):
        read_pairs(path)


def test_a_workbook_without_openpyxl_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as book:
        book.writestr("[Content_Types].xml", "")
    with pytest.raises(UserError, match=r"pip install 'mergeability\[xlsx\]'"):
        read_pairs(tmp_path / "t.xlsx")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200) | st.text(alphabet='task_ab,;\t"\n\r# .0159%-xé', max_size=200).map(str.encode)
)
def test_any_bytes_end_in_rows_or_a_sentence(content):
    try:
        found = text_rows(content, "t.csv")
    except UserError:
        return
    assert found.header


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_of_a_table_ends_in_a_table_or_a_sentence(tmp_path_factory, data):
    text = data.draw(st.sampled_from([TEXT, german(TEXT)]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        text = (
            text[:place]
            + data.draw(st.text('",;\t\n1.%#\x00é', max_size=3))
            + text[place + data.draw(st.integers(0, 9)) :]
        )
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_text(text, newline="")
    try:
        found = PairTable.of(read_pairs(path).frame, ["cosine", "l2"], ["ties"])
    except UserError:
        return
    assert found.frame[["cosine", "l2"]].dtypes.tolist() == [float, float]
