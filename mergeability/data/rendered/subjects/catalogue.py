"""List the twenty subjects of rendered tasks, each with a drawing function and the names of its classes.

Every drawing function takes the labels wanted, a generator for everything else, and the split (which only the
handwritten digits need), and returns ink. None of them knows colours or noise: `canvas.paint` adds those.

The images of a subject depend on its name, the stream, the seed and the number of images, and on no other subject.
"""

from mergeability.data.rendered.canvas import HUES
from mergeability.data.rendered.glyphs import LETTERS
from mergeability.data.rendered.subjects.characters import draw_digits, draw_letters
from mergeability.data.rendered.subjects.fields import NOISES, SYMMETRIES, draw_mirrors, draw_noise
from mergeability.data.rendered.subjects.outlines import (
    POLYGONS,
    SHAPES,
    draw_colours,
    draw_polygons,
    draw_shapes,
)
from mergeability.data.rendered.subjects.patterns import (
    ORIENTATIONS,
    SPOKEN_ORIENTATIONS,
    SPOKEN_WIDTHS,
    TEXTURES,
    WIDTHS,
    draw_frequency,
    draw_orientation,
    draw_textures,
)
from mergeability.data.rendered.subjects.relations import (
    COLOURS,
    COVERS,
    HOLES,
    RINGS,
    SIZES,
    draw_buttons,
    draw_covers,
    draw_loops,
    draw_palette,
    draw_sizes,
)
from mergeability.data.rendered.subjects.scenes import (
    DIRECTIONS,
    HOURS,
    RELATIONS,
    draw_arrows,
    draw_clocks,
    draw_dots,
    draw_positions,
)
from mergeability.data.rendered.subjects.strokes import STROKES, draw_strokes
from mergeability.data.rendered.subjects.subject import NUMBERS, Subject

SUBJECTS = {
    "digits": Subject(NUMBERS[:10], draw_digits, "the digit {}", "a digit"),
    "letters": Subject(LETTERS, draw_letters, "the letter {}", "a letter"),
    "shapes": Subject(tuple(SHAPES), draw_shapes, "a {} shape", "a shape"),
    "colours": Subject(tuple(HUES), draw_colours, "a {} thing", "a coloured thing", colour_is_class=True),
    "dots": Subject(NUMBERS[1:7], draw_dots, "{} dots", "some dots"),
    "orientation": Subject(ORIENTATIONS, draw_orientation, "{} lines", "lines", SPOKEN_ORIENTATIONS),
    "frequency": Subject(tuple(WIDTHS), draw_frequency, "{} bands", "bands", SPOKEN_WIDTHS),
    "textures": Subject(tuple(TEXTURES), draw_textures, "a pattern of {}", "a pattern"),
    "arrows": Subject(DIRECTIONS, draw_arrows, "an arrow pointing {}", "an arrow"),
    "clocks": Subject(HOURS, draw_clocks, "a clock at {}", "a clock"),
    "polygons": Subject(tuple(POLYGONS), draw_polygons, "a polygon, a {}", "a polygon"),
    "positions": Subject(RELATIONS, draw_positions, "a circle {} a square", "a circle and a square"),
    "buttons": Subject(HOLES, draw_buttons, "a button with {}", "a button"),
    "covers": Subject(COVERS, draw_covers, "a {}", "one shape covering another"),
    "loops": Subject(RINGS, draw_loops, "two {} rings", "two rings"),
    "mirrors": Subject(SYMMETRIES, draw_mirrors, "a mosaic mirrored {}", "a mosaic"),
    "noise": Subject(NOISES, draw_noise, "noise like {}", "noise"),
    "palette": Subject(COLOURS, draw_palette, "spots in {}", "coloured spots"),
    "sizes": Subject(tuple(SIZES), draw_sizes, "a left thing {} the right one", "two things"),
    "strokes": Subject(STROKES, draw_strokes, "a scribbled {}", "a scribble"),
}
