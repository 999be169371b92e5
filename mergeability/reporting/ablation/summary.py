"""Write the page and the tables of an ablation into the folder of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from mergeability.files import write_text
from mergeability.prediction.csv_files import csv_text
from mergeability.reporting.ablation.comparison import Ablation, compare
from mergeability.reporting.ablation.page import ablation_page


def write_summary(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> Path:
    """Compare finished jobs, write tables and an HTML page into the sweep's folder, and return the path of the page."""
    return save(compare(run_folders, beside), folder)


def save(found: Ablation, folder: Path) -> Path:
    """Write `ablation.html` and the four tables as `ablation_*.csv`; return the page's path."""
    for name in ("merges", "models", "metrics", "choices"):
        write_text(folder / f"ablation_{name}.csv", csv_text(getattr(found, name)))
    page = folder / "ablation.html"
    write_text(page, ablation_page(found))
    return page
