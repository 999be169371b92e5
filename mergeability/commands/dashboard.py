"""Implement the dashboard command, which presents all runs of a folder in an HTML file or in Weights & Biases."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mergeability.commands.terminal import shown_text
from mergeability.errors import UserError
from mergeability.members import members
from mergeability.progress import track
from mergeability.reporting.dashboard.content import NUMBERS
from mergeability.reporting.dashboard.gather import gather
from mergeability.reporting.dashboard.page import write_dashboard

_NAME = "dashboard.html"
_SHOWN = 5
_EXAMPLES = """\
examples:
  python -m mergeability.commands.dashboard                             all runs below outputs
  python -m mergeability.commands.dashboard outputs/runs --output all.html
  python -m mergeability.commands.dashboard --wandb my-team/mergeability --methods ties tsv

The page is one file that needs no network: filters by task, merge method, penalty, strength, seed, suite and model;
merged accuracy, pairs, merged against single-task accuracy, predictions, fingerprints, and lists of analyses and
trainings. Hidden folders, wandb/ and the store are not searched. --wandb makes the same panels in Weights & Biases from
the runs that were logged there (extra `dashboards`).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Create a dashboard from command-line arguments; return the exit code."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.methods and not asked.wandb:
        parser.error(
            "--methods can only be used with --wandb; in the HTML page, select methods with the filters"
        )
    if asked.output and asked.wandb:
        parser.error("--wandb writes no file: remove --output")
    try:
        _save(asked) if asked.wandb else _write(asked)
    except UserError as error:
        sys.stderr.write(f"Error: {shown_text(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Nothing was written.\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mergeability.commands.dashboard",
        description="Create one page that shows all finished analyses and trainings in the given folders.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folders of runs (default: outputs)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the HTML file to write (default: {_NAME} in the first folder)",
    )
    parser.add_argument(
        "--numbers",
        type=_positive,
        default=NUMBERS,
        metavar="N",
        help="maximum number of values in the page; each takes about seven bytes (default: %(default)s)",
    )
    wandb = parser.add_argument_group("Weights & Biases, in place of a page")
    wandb.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="create a workspace and a report in this W&B project"
    )
    wandb.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="merge methods to show in panels (default: all of conf/merge, or those of the runs in FOLDER)",
    )
    wandb.add_argument(
        "--predictor",
        default="ridge",
        help="predictor whose correlations are shown (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _write(asked: argparse.Namespace) -> None:
    folders = asked.folders or [Path("outputs")]
    gathered = gather(folders, track)
    path = asked.output or folders[0] / _NAME
    left_out = write_dashboard(gathered, path, asked.numbers, track)
    for sentence in left_out[:_SHOWN]:
        sys.stderr.write(f"{shown_text(sentence)}\n")
    if len(left_out) > _SHOWN:
        sys.stderr.write(f"{len(left_out) - _SHOWN} more are listed at the end of the page.\n")
    sys.stdout.write(
        f"{shown_text(str(path))}: analyses: {len(gathered.runs)}, trainings: {len(gathered.trainings)}, "
        f"left out: {len(left_out)}.\n"
    )


def _save(asked: argparse.Namespace) -> None:
    """Save the workspace and the report, which show logged runs; FOLDER only determines the methods."""
    from mergeability.reporting.dashboard.workspace import Project, save

    methods = asked.methods
    if methods is None and asked.folders:
        runs = gather(asked.folders, track).runs
        methods = list(dict.fromkeys(method for run in runs for method in run.methods))
    project = Project.parse(
        asked.wandb, list(members("merge")) if methods is None else methods, asked.predictor
    )
    for name, address in save(project).items():
        sys.stdout.write(f"{name}: {shown_text(address)}\n")


if __name__ == "__main__":
    sys.exit(main())
