"""Draw characters: handwritten digits, and capital letters in several fonts."""

import torch
from torch import Generator

from mergeability.data.rendered.canvas import Frame, place, uniform
from mergeability.data.rendered.glyphs import handwritten_digits, letter_fonts, sample_glyphs
from mergeability.data.rendered.subjects.subject import Ink, Labels


def draw_digits(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a real handwritten digit with random stretching, slant and position."""
    originals, values = handwritten_digits(split)
    chosen = torch.empty_like(labels)
    for value in range(10):
        pool = torch.nonzero(values == value)[:, 0]
        wanted = labels == value
        picks = torch.randint(0, len(pool), (int(wanted.sum()),), generator=generator)
        chosen[wanted] = pool[picks]
    frame = place(len(labels), generator, scale=(0.75, 0.95), turn=0.15)
    return sample_glyphs(originals[chosen], frame)


def draw_letters(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a capital letter in one of several fonts with random stretching, slant and position."""
    count = len(labels)
    fonts = letter_fonts()
    chosen = torch.randint(0, len(fonts), (count,), generator=generator)
    frame = place(count, generator, scale=(0.7, 0.9), turn=0.15)
    slant = uniform(generator, -0.2, 0.2, count, 1, 1)
    stretch = uniform(generator, 0.8, 1.25, count, 1, 1)
    slanted = Frame((frame.u - slant * frame.v) * stretch, frame.v, frame.scale)
    return sample_glyphs(fonts[chosen, labels], slanted)
