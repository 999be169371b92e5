import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.weights.safetensors_file import TensorFile, write_rows

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64]


@pytest.fixture
def file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randn(5, 7, generator=generator).mul(9).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "nothing": torch.zeros(0, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "tensors.safetensors", metadata={"who": "cares"})
    return tmp_path / "tensors.safetensors"


@pytest.mark.parametrize("name", [*map(str, DTYPES), "scalar", "nothing"])
def test_tensors_are_those_the_library_reads(file, name):
    expected = safetensors.torch.load_file(file)[name]
    found = TensorFile(file).tensor(name)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.float(), expected.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), [(0, 35), (0, 1), (34, 35), (6, 22), (9, 9)])
def test_ranges_are_those_of_the_flattened_tensor(file, dtype, start, stop):
    expected = safetensors.torch.load_file(file)[str(dtype)].float().flatten()[start:stop]
    opened = TensorFile(file)
    read = opened.read_float32(str(dtype), start, stop)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(opened.read(str(dtype), start, stop).float(), expected)


def test_halves_keep_what_is_special(tmp_path):
    values = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 6e-8, 65504.0])
    for dtype in (torch.float16, torch.bfloat16):
        safetensors.torch.save_file({"a": values.to(dtype)}, tmp_path / "a.safetensors")
        found = TensorFile(tmp_path / "a.safetensors").read_float32("a")
        assert found.tobytes() == values.to(dtype).float().numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_read_in_pieces_that_follow_each_other(tmp_path, dtype):
    values = torch.randn(3 * 2**17 + 5, generator=torch.Generator().manual_seed(0)).mul(99).to(dtype)
    safetensors.torch.save_file({"a": values}, tmp_path / "a.safetensors")
    opened, out = TensorFile(tmp_path / "a.safetensors"), np.full(2**18 + 2, np.nan, dtype=np.float32)
    opened.fill_float32("a", 3, out)
    np.testing.assert_array_equal(out, values[3 : 2**18 + 5].float())
    np.testing.assert_array_equal(opened.read_float32("a"), values.float())


def test_what_is_read_belongs_to_the_caller(file):
    opened = TensorFile(file)
    opened.tensor("scalar").zero_()
    opened.read_float32(str(torch.float32))[:] = 0
    assert opened.tensor("scalar") == 3.5
    assert opened.read_float32(str(torch.float32)).any()


def resident_file_pages():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile")).split()[1]) * 1024


def test_no_page_of_the_file_stays_resident(tmp_path):
    size = 64 * 2**20
    safetensors.torch.save_file({"a": torch.ones(size // 4)}, tmp_path / "a.safetensors")
    opened = TensorFile(tmp_path / "a.safetensors")
    before = resident_file_pages()
    total = sum(
        float(opened.read_float32("a", start, start + 2**16).sum()) for start in range(0, size // 4, 2**16)
    )
    assert total == size // 4
    assert resident_file_pages() - before < size // 8


def test_a_type_that_is_not_known_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(UserError, match=r"'a' in .* has the unsupported type F8_E8M0"):
        TensorFile(tmp_path / "a.safetensors")


def test_a_file_cut_short_after_opening_is_an_error(file):
    opened = TensorFile(file)
    os.truncate(file, file.stat().st_size - 600)
    with pytest.raises(UserError, match="was changed while it was in use"):
        for name in opened.entries:
            opened.tensor(name)


def test_a_file_that_is_replaced_is_not_read_on(file):
    """Its parts would not belong together, nor to the hash they are filed under."""
    opened = TensorFile(file)
    other = file.with_name("other.safetensors")
    safetensors.torch.save_file(safetensors.torch.load_file(file), other)
    opened.tensor("scalar")
    other.replace(file)
    with pytest.raises(UserError, match="was changed while it was in use"):
        opened.tensor("scalar")
    with pytest.raises(UserError, match="was changed while it was in use"):
        opened.check_unchanged()
    assert TensorFile(file).tensor("scalar") == 3.5


def test_a_folder_or_a_missing_file_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(UserError, match=f"^Cannot read {path}: "):
            TensorFile(path)


def test_a_file_that_was_removed_is_an_error_in_a_sentence(file):
    opened = TensorFile(file)
    file.unlink()
    with pytest.raises(UserError, match=r"^Cannot read .*: No such file or directory\.$"):
        opened.tensor("scalar")


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(file, monkeypatch):
    opened = TensorFile(file)
    monkeypatch.setattr(opened, "_compare", lambda handle: os.truncate(file, file.stat().st_size - 600))
    with pytest.raises(UserError, match="the file became shorter while it was read"):
        for name in opened.entries:
            opened.tensor(name)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        TensorFile(tmp_path / "a.safetensors")


@pytest.fixture
def byte_file(tmp_path):
    values = torch.arange(3 * 5 * 2, dtype=torch.uint8).reshape(3, 5, 2)
    tensors = {
        "a": values,
        "one": torch.tensor(7, dtype=torch.uint8),
        "none": values[:0],
        "b": values.short(),
    }
    safetensors.torch.save_file(tensors, tmp_path / "bytes.safetensors")
    return tmp_path / "bytes.safetensors"


@pytest.mark.parametrize("name", ["a", "one", "none"])
def test_a_mapped_tensor_is_the_one_the_library_reads(byte_file, name):
    expected = safetensors.torch.load_file(byte_file)[name]
    found = TensorFile(byte_file).mapped(name)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_nothing_written_to_a_mapped_tensor_reaches_the_file(byte_file):
    before = byte_file.read_bytes()
    mapped = TensorFile(byte_file).mapped("a")
    mapped.zero_()
    assert not mapped.any()
    assert byte_file.read_bytes() == before
    assert TensorFile(byte_file).mapped("a").any()


def test_a_mapped_tensor_is_a_view_of_the_file(byte_file):
    mapped = TensorFile(byte_file).mapped("a")
    lines = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(byte_file))
    ]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    assert any(start <= mapped.data_ptr() < stop for start, stop in ranges)


def test_only_bytes_are_mapped(byte_file):
    with pytest.raises(UserError, match=r"'b' in .*bytes.safetensors is torch.int16"):
        TensorFile(byte_file).mapped("b")


def test_a_file_that_was_changed_or_removed_is_not_mapped(byte_file):
    opened = TensorFile(byte_file)
    os.utime(byte_file, ns=(0, 0))
    with pytest.raises(UserError, match="was changed while it was in use"):
        opened.mapped("a")
    byte_file.unlink()
    with pytest.raises(UserError, match=r"Cannot read .*No such file"):
        opened.mapped("a")


def test_rows_written_in_parts_are_read_by_the_library_itself(tmp_path):
    rows = torch.arange(7 * 3 * 4, dtype=torch.uint8).reshape(7, 3, 4)
    labels = torch.tensor([5, -1, 3])
    path = tmp_path / "rows.safetensors"
    write_rows(
        path, "rows", iter(rows.split(3)), lambda: {"labels": labels, "half": labels.half()}, {"a": "b"}
    )
    found = safetensors.torch.load_file(path)
    assert found.keys() == {"rows", "labels", "half"}
    torch.testing.assert_close(found["rows"], rows, rtol=0, atol=0)
    torch.testing.assert_close(found["labels"], labels, rtol=0, atol=0)
    torch.testing.assert_close(found["half"], labels.half(), rtol=0, atol=0)
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"a": "b"}
    assert torch.equal(TensorFile(path).mapped("rows"), rows)


def test_the_other_tensors_are_asked_for_last(tmp_path):
    labels = []

    def parts():
        for part in torch.zeros(6, 2, dtype=torch.uint8).split(2):
            labels.extend([1] * len(part))
            yield part

    path = tmp_path / "rows.safetensors"
    write_rows(path, "rows", parts(), lambda: {"labels": torch.tensor(labels)}, {})
    assert len(TensorFile(path).tensor("labels")) == 6


def test_no_rows_or_too_long_a_header_are_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    with pytest.raises(UserError, match="no rows to write"):
        write_rows(path, "rows", iter([]), dict, {})
    with pytest.raises(UserError, match=r"header .* has \d+ bytes, but at most 4096 are allowed"):
        write_rows(path, "rows", iter([torch.zeros(1, 2, dtype=torch.uint8)]), dict, {"a": "b" * 5000})
