"""Draw the figures of docs/gallery.md from the files of a run: `python docs/figures.py outputs/demo`.

The figures are SVG files of a few kilobytes in docs/images, written without a plotting library.
"""

import argparse
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

IMAGES = Path(__file__).parent / "images"
INK, GRID, BLUE, ORANGE = "#222222", "#dddddd", "#3b5bdb", "#e8590c"


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description="Draw the figures of the gallery from the files of a run.")
    parser.add_argument("run", type=Path, help="the folder of the run, such as outputs/demo")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where to write (default: docs/images)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(options.run / "pairs.csv", comment="#")
    figures = {
        "pairs": heat_map(table, "norm_acc_tsv"),
        "methods": strips(table),
        "metric": scatter(table, "task_vector_cosine_similarity", "norm_acc_tsv"),
    }
    for name, text in figures.items():
        (options.out / f"{name}.svg").write_text(text, encoding="utf-8")


def heat_map(table: pd.DataFrame, column: str, cell: int = 46, margin: int = 90) -> str:
    """Draw an outcome of every pair as a matrix."""
    tasks = list(dict.fromkeys([*table["task_a"], *table["task_b"]]))
    values = {}
    for a, b, value in zip(table["task_a"], table["task_b"], table[column], strict=True):
        values[a, b] = values[b, a] = value
    low, high = table[column].min(), table[column].max()
    parts = []
    for row, a in enumerate(tasks):
        y = margin + row * cell
        parts.append(text(margin - 8, y + cell / 2 + 4, a, "end"))
        x = margin + row * cell + cell / 2
        parts.append(
            f'<text x="{x}" y="{margin - 8}" transform="rotate(-45 {x} {margin - 8})">{escape(a)}</text>'
        )
        for column_index, b in enumerate(tasks):
            if a == b or (a, b) not in values:
                continue
            share = (values[a, b] - low) / (high - low) if high > low else 1.0
            left = margin + column_index * cell
            parts.append(
                f'<rect x="{left}" y="{y}" width="{cell - 2}" height="{cell - 2}" fill="{shade(share)}"/>'
            )
            colour = "white" if share > 0.55 else INK
            parts.append(
                text(left + cell / 2 - 1, y + cell / 2 + 4, f"{values[a, b]:.2f}", "middle", 11, colour)
            )
    return svg(margin + cell * len(tasks) + 40, margin + cell * len(tasks) + 10, parts)


def strips(table: pd.DataFrame, width: int = 640, row: int = 44, margin: int = 90) -> str:
    """Draw normalised accuracies of all pairs, one row per method, ordered by their means."""
    columns = [name for name in table if name.startswith("norm_acc_") and not name.endswith(("_a", "_b"))]
    columns.sort(key=lambda name: -table[name].mean())
    # Room for the marks at both ends.
    low, high = np.floor(table[columns].min().min() * 20) / 20, 1.0
    scale = (width - margin - 20) / (high - low)
    rng = np.random.default_rng(0)
    bottom = row * len(columns) + 10
    parts = []
    for tick in np.arange(low, high + 0.001, 0.1):
        x = margin + (tick - low) * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(text(x, bottom + 16, f"{tick:.2f}", "middle"))
    for index, name in enumerate(columns):
        middle = 10 + row * (index + 0.5)
        parts.append(text(margin - 8, middle + 4, name.removeprefix("norm_acc_"), "end"))
        for value in table[name]:
            x, y = margin + (value - low) * scale, middle + rng.uniform(-11, 11)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{BLUE}" fill-opacity="0.55"/>')
        x = margin + (table[name].mean() - low) * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 15}" y2="{middle + 15}" stroke="{ORANGE}" '
            'stroke-width="3"/>'
        )
    parts.append(text((width + margin) / 2, bottom + 36, "normalised accuracy", "middle"))
    return svg(width, bottom + 46, parts)


def scatter(table: pd.DataFrame, metric: str, outcome: str, width: int = 560, height: int = 380) -> str:
    """Draw a metric against an outcome, one point per pair."""
    left, bottom = 70, height - 50
    x_values, y_values = table[metric], table[outcome]
    x_low, x_high, y_low, y_high = x_values.min(), x_values.max(), y_values.min(), y_values.max()
    parts = []
    for step in range(5):
        share = step / 4
        x, y = left + share * (width - left - 20), bottom - share * (bottom - 20)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(text(x, bottom + 16, f"{x_low + share * (x_high - x_low):.2f}", "middle"))
        parts.append(text(left - 8, y + 4, f"{y_low + share * (y_high - y_low):.2f}", "end"))
    for x_value, y_value in zip(x_values, y_values, strict=True):
        x = left + (x_value - x_low) / (x_high - x_low) * (width - left - 20)
        y = bottom - (y_value - y_low) / (y_high - y_low) * (bottom - 20)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}" fill-opacity="0.7"/>')
    r = np.corrcoef(x_values, y_values)[0, 1]
    parts.append(text((width + left) / 2, height - 12, f"{metric}, r = {r:.2f}", "middle"))
    parts.append(
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">'
        "normalised accuracy (tsv)</text>"
    )
    return svg(width, height, parts)


def text(x: float, y: float, words: str, anchor: str, size: int = 12, colour: str = INK) -> str:
    """Write a label."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def shade(share: float) -> str:
    """Return a blue, the darker the larger the share."""
    light, dark = np.array([230, 238, 255]), np.array([24, 60, 160])
    red, green, blue = (light + (dark - light) * share).astype(int)
    return f"rgb({red},{green},{blue})"


def svg(width: float, height: float, parts: list[str]) -> str:
    """Put shapes onto a white canvas."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
