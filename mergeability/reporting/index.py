"""Write `index.html`, which lists all runs, and create `latest`, a link to the newest run."""

import contextlib
import os
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from mergeability.files import write_text
from mergeability.reporting.page import Section, page, paragraphs, table
from mergeability.reporting.run_lines import RunLine, run_line, run_lines

_COLUMNS = {"page": "page", "verdict": "verdict", "command": "command"}


def record_run(folder: Path, root: Path, runs: Path) -> bool:
    """Write `index.html` into the output folder and make `latest` a link to a finished run.

    Args:
        folder: of the run.
        root: the folder whose runs are listed.
        runs: where `latest` is: a link, or `latest.txt` with the path on systems without links.

    Returns:
        Whether there is a page of a finished run in the folder.

    Raises:
        OSError: a file cannot be written.
        UserError: a file cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting import save
        >>> from mergeability.reporting.index import record_run
        >>> with TemporaryDirectory() as name:
        ...     root = Path(name)
        ...     _ = save(Analysis("Six tasks", example_pairs(), ["cosine"], ["ties"]), root / "runs" / "first")
        ...     record_run(root / "runs" / "first", root, root / "runs")
        ...     "Six tasks" in (root / "index.html").read_text(encoding="utf-8")
        True
        True
    """
    if run_line(folder) is None:
        return False
    runs.mkdir(parents=True, exist_ok=True)
    _point_to(folder, runs)
    write_text(root / "index.html", index_page(run_lines(root), root))
    return True


def index_page(lines: list[RunLine], base: Path) -> str:
    """Return a list of runs as HTML.

    Args:
        lines: the runs, in the order of the list.
        base: the folder of the page; links are relative to it.
    """
    if not lines:
        body = paragraphs("No run has finished yet.")
    else:
        rows = pd.DataFrame(
            {
                "page": [line.title for line in lines],
                "verdict": [line.verdict or "–" for line in lines],
                "command": [line.command or "–" for line in lines],
            },
            index=[line.finished.replace("T", " ")[:16] or "–" for line in lines],
        )
        body = table(
            rows,
            _COLUMNS,
            "finished (UTC)",
            list(_COLUMNS),
            caption="All runs, the last one first",
            links={"page": [line.link(base) for line in lines]},
        )
        body = Markup('<div class="wrapped">') + body + Markup("</div>")
    return page("Runs", Markup(), [Section("runs", "Which runs are there?", body)], plotly=False)


def _point_to(folder: Path, runs: Path) -> None:
    target = os.path.relpath(folder.resolve(), runs.resolve())
    temporary = runs / f".latest.{os.getpid()}"
    try:
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(runs / "latest")
    except OSError:
        # A file system without links, or a folder of that name.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        write_text(runs / "latest.txt", f"{target}\n")
