"""Files to pixels: modes, orientation, threads that keep the order, and a bounded number of images in memory."""

import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from mergeability.data.real.decoding import Encoded, decode, decoded

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 0, 1)


def test_rgb_is_kept():
    np.testing.assert_array_equal(decode(saved(Image.fromarray(COLOURS))), channels_first(COLOURS))


def test_a_file_is_read_like_bytes(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), channels_first(COLOURS))


def test_grey_becomes_three_equal_channels():
    grey = COLOURS[..., 0]
    np.testing.assert_array_equal(decode(saved(Image.fromarray(grey))), np.stack([grey] * 3))


def test_transparency_is_dropped():
    alpha = np.concatenate([COLOURS, COLOURS[..., :1]], axis=2)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(alpha))), channels_first(COLOURS))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([[64, 32, 16, 128], [200, 100, 0, 255]], [[127, 63, 31], [200, 100, 0]]),
        ([[64, 128], [200, 255]], [[127, 127, 127], [200, 200, 200]]),
    ],
)
def test_colours_multiplied_by_their_opacity_are_divided_by_it(stored, expected):
    pixels = np.array([stored], dtype=np.uint8)
    image = Image.frombytes("RGBA" if pixels.shape[2] == 4 else "LA", (2, 1), pixels.tobytes())
    # TIFF's tag 338 says which kind of opacity a file holds: 2 for plain colours, 1 for multiplied ones.
    plain, multiplied = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    content = saved(image, "TIFF", tiffinfo={338: 2})
    assert content.count(plain) == 1
    np.testing.assert_array_equal(decode(content), channels_first(np.asarray(image.convert("RGB"))))
    np.testing.assert_array_equal(
        decode(content.replace(plain, multiplied)), channels_first(np.array([expected]))
    )


@pytest.mark.parametrize("options", [{}, {"transparency": 1}, {"transparency": bytes(range(256))}])
def test_a_palette_becomes_its_colours(options):
    indices = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
    palette = np.array([[9, 8, 7], [200, 1, 2], [3, 250, 4], [5, 6, 255]], dtype=np.uint8)
    image = Image.new("P", (7, 5))
    image.putdata(indices.flatten().tolist())
    image.putpalette(palette.flatten().tolist())
    np.testing.assert_array_equal(decode(saved(image, **options)), channels_first(palette[indices]))


def test_one_bit_images_are_black_and_white():
    bits = COLOURS[..., 0] > 127
    expected = np.stack([bits * np.uint8(255)] * 3)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(bits))), expected)


def test_a_photograph_is_turned_as_its_orientation_says():
    exif = Image.Exif()
    exif[274] = 6  # the top of the scene is at the file's right: turn it clockwise
    expected = np.rot90(COLOURS, k=-1)
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(COLOURS), exif=exif)), channels_first(expected)
    )


def test_rows_and_columns_are_swapped_where_the_files_hold_them_so():
    found = decode(saved(Image.fromarray(COLOURS)), transpose=True)
    np.testing.assert_array_equal(found, channels_first(COLOURS.swapaxes(0, 1)))


def test_deep_greyscale_is_scaled_not_clipped():
    deep = np.array([[0, 1, 128, 129, 257, 300, 32768, 65407, 65534, 65535]], dtype=np.uint16)
    expected = np.rint(deep / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 0, 1, 1, 1, 128, 255, 255, 255]]
    kinds = {
        "PNG": Image.fromarray(deep),
        "TIFF": Image.fromarray(deep),
        "PPM": Image.fromarray(deep.astype(np.int32)),
    }
    for kind, image in kinds.items():
        data = saved(image, kind)
        np.testing.assert_array_equal(decode(data), np.stack([expected] * 3), err_msg=kind)
        (found,) = decoded([Encoded("deep", 0, data)], torch.clone)
        assert "scaled from 0..65535" in (found.remark or "")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_an_unknown_range_are_refused(dtype):
    with pytest.raises(OSError, match=r"more than eight bits.*convert them to eight bits"):
        decode(saved(Image.fromarray(COLOURS[..., 0].astype(dtype)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_used_and_that_is_said(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    (found,) = decoded([Encoded("frames", 0, data)], torch.clone)
    assert found.value is not None
    assert found.value[:, 0, 0].tolist() == [255, 0, 0]
    assert "the first is used" in (found.remark or "")


def test_inks_become_their_colours():
    inks = Image.fromarray(
        np.array([[[0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8), "CMYK"
    )
    assert decode(saved(inks, "TIFF"))[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 0], [255, 255, 255]]


def test_an_image_without_remarks_has_none():
    (found,) = decoded(many(1), torch.clone)
    assert found.remark is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 and more", "a zip archive is no image"),
        (b"%PDF-1.7", "a PDF file is no image"),
        (b"<svg/>", "a text or SVG file is no image"),
        (b"words", "the file is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the file is no image"),
    ],
)
def test_the_reason_says_what_a_file_is(data, reason, tmp_path):
    """PostScript would be handed to another program."""
    (tmp_path / "x.jpg").write_bytes(data)
    for image in (data, tmp_path / "x.jpg"):
        (found,) = decoded([Encoded("x.jpg", 0, image)], torch.clone)
        assert reason in (found.error or "")


def test_what_is_no_file_has_a_reason_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    images = [
        Encoded(name, 0, tmp_path / name) for name in ("pipe.png", "gone.png", "folder.png", "never.png")
    ]
    reasons = [found.error or "" for found in decoded(images, torch.clone)]
    assert "a link that leads nowhere" in reasons[1]
    assert all("there is no such file" in reasons[place] for place in (0, 2, 3))


def test_an_image_above_the_limit_has_a_reason(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    data = saved(Image.new("1", (2000, 1001)))
    (found,) = decoded([Encoded("large.png", 0, data)], torch.clone)
    assert found.error == "OSError: more than 2 million pixels: make it smaller"


def many(count: int) -> list[Encoded]:
    return [
        Encoded(f"image {row}", row, saved(Image.fromarray(np.full((4, 4, 3), row % 256, np.uint8))))
        for row in range(count)
    ]


def test_threads_keep_the_order_and_the_labels():
    found = list(decoded(many(500), lambda pixels: int(pixels[0, 0, 0])))
    assert [image.value for image in found] == [row % 256 for row in range(500)]
    assert [image.label for image in found] == list(range(500))


def test_a_broken_image_carries_its_reason_and_the_others_go_on():
    images = many(5)
    images[2] = Encoded("image 2", 2, b"nothing")
    found = list(decoded(images, lambda pixels: int(pixels[0, 0, 0])))
    assert [image.value for image in found] == [0, 1, None, 3, 4]
    assert "UnidentifiedImageError" in (found[2].error or "")


def test_a_defect_in_the_work_is_no_broken_image():
    def work(pixels):
        raise OSError("a defect")

    with pytest.raises(OSError, match="a defect"):
        list(decoded(many(3), work))


def test_few_images_are_read_ahead(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    taken = []

    def watched():
        for image in many(400):
            taken.append(image.name)
            yield image

    results = decoded(watched(), torch.clone)
    for done in range(1, 200):
        next(results)
        assert len(taken) <= done + 2 * 16
    results.close()
    assert len(taken) < 240
