"""Files to pixels: modes, orientation, threads that keep the order, and a bounded number of images in memory."""

import io

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


def test_more_than_eight_bits_are_refused_not_clipped():
    deep = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257)
    with pytest.raises(OSError, match="more than eight bits"):
        decode(saved(deep))


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
