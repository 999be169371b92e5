"""Random tables, well written, oddly written and damaged: each is a value or one sentence, and no number is made up."""

import gzip
import io
import random

import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.pipeline.table_files import read_pairs

IN_EACH_RUN, IN_THE_SLOW_TIER = 30, 600
DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1")
ODD_CELLS = (
    "",
    "NA",
    "#N/A",
    "nan",
    "inf",
    "-",
    "?",
    "12 %",
    "1e999",
    "0x10",
    "=1+1",
    '"',
    "''",
    "ü",
    "\x00",
    "1,2,3",
    "True",
    " 5 ",
)


class Written:
    """A table of pairs, and the bytes in which someone wrote it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        names = [f"t{number}" for number in range(self.random.choice([2, 4, 6]))]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        self.frame = pd.DataFrame(pairs, columns=["task_a", "task_b"])
        for name in ("stable_rank", "norm_acc_ties", "acc_ties")[: self.random.randrange(4)]:
            self.frame[name] = [round(self.random.uniform(0.2, 0.9), 4) for _ in pairs]
        self.odd = self.random.random() < 0.6
        self.content = self._bytes()

    def _bytes(self) -> bytes:
        if self.random.random() < 0.1:
            buffer = io.BytesIO()
            self.frame.to_parquet(buffer)
            return self._damaged(buffer.getvalue())
        delimiter = self.random.choice(DELIMITERS)
        decimal = "," if delimiter != "," and self.random.random() < 0.5 else "."
        end = self.random.choice(["\n", "\r\n", "\r"])
        text = self.frame.to_csv(
            index=self.random.random() < 0.3, sep=delimiter, decimal=decimal, lineterminator=end
        )
        if self.odd:
            text = self._mutated(text, delimiter, end)
        content = text.encode(self.random.choice(ENCODINGS), "replace")
        if self.random.random() < 0.1:
            content = gzip.compress(content)
        return self._damaged(content)

    def _mutated(self, text: str, delimiter: str, end: str) -> str:
        rows = [row.split(delimiter) for row in text.split(end)]
        for _ in range(self.random.randrange(1, 5)):
            row = self.random.choice(rows)
            place = self.random.randrange(len(row))
            match self.random.randrange(6):
                case 0:
                    row[place] = self.random.choice(ODD_CELLS)
                case 1:
                    row.append("")
                case 2:
                    del row[place]
                case 3:
                    rows.append(list(row))
                case 4:
                    rows.insert(0, ["# a remark"])
                case 5:
                    row[place] = f" {row[place]} "
            rows = [one or [""] for one in rows]
        return end.join(delimiter.join(row) for row in rows)

    def _damaged(self, content: bytes) -> bytes:
        if not self.odd or self.random.random() < 0.7 or not content:
            return content
        cut = self.random.randrange(len(content))
        return content[:cut] + bytes(self.random.randrange(256) for _ in range(self.random.randrange(4)))


def check(seed: int, path) -> str:
    """Read one table; return how it ended.

    Without an oddity the values are those that were written. With one, whatever is read has pairs and numbers.
    """
    written = Written(seed)
    path.write_bytes(written.content)
    refusal = None
    try:
        found = read_pairs(path)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.strip()
        assert written.odd, (seed, refusal)
        return "refused"
    assert {"task_a", "task_b"} <= set(found.frame.columns)
    if not written.odd:
        expected = written.frame
        read = found.frame[list(expected.columns)]
        pd.testing.assert_frame_equal(
            read.reset_index(drop=True), expected, check_dtype=False, check_exact=False, rtol=1e-12
        )
    return "read"


@pytest.mark.parametrize("seed", range(IN_EACH_RUN))
def test_random_tables_end_in_values_or_a_sentence(seed, tmp_path):
    assert check(seed, tmp_path / "pairs.csv") in ("read", "refused")


@pytest.mark.slow
def test_many_random_tables_end_in_values_or_a_sentence(tmp_path):
    ends = [check(seed, tmp_path / "pairs.csv") for seed in range(IN_THE_SLOW_TIER)]
    assert set(ends) == {"read", "refused"}
