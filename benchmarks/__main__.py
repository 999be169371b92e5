"""The benchmark's command: check, write models, measure, write `metrics.json` and `.md`, or `merges.json` and `.md`."""

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import agreement, merge_opponents, merge_report, merges, models, opponents, plan, report
from benchmarks.machine import load, machine, versions
from mergeability.files import read_json, write_text
from mergeability.provenance import git_commit

_SMALL = {"models": [2, 4], "memory_models": [2], "merge_models": [2, 4], "pairs": 1, "rounds": 1}
_FULL = {
    "models": [2, 4, 8, 16, 20],
    "memory_models": [2, 4, 8, 16],
    "merge_models": [2, 8, 20],
    "pairs": 3,
    "rounds": 3,
}
_LARGE_MODELS = 8
_PARTS = (*plan.PARTS, plan.MERGE)
_METHODS = tuple(name for name in merges.names() if name not in merges.needing_data())
# By the names of the files.
_REPORTS: dict[str, Any] = {"metrics": report, "merges": merge_report}
# What of the command line says where, not what: left out of the results.
_PLACES = ("--folder", "--results")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(given)
    # An ending from outside is an error like others: what was written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    differing = _check(options.part)
    if differing:
        print("\n".join([*differing, "Nothing is timed as long as values differ."]), file=sys.stderr)
        return 1
    results = _Results(options.results, _command(given))
    choice = plan.Choice(
        options.part,
        options.models,
        options.memory_models,
        options.pairs,
        options.merge_models,
        options.methods,
        options.rounds,
        options.plain,
    )
    succeeded = _measure(options.sizes, choice, options.folder, results)
    if options.large:
        large = plan.Choice(("memory",), (), (_LARGE_MODELS,))
        succeeded = _measure("vit_l14", large, options.folder, results) and succeeded
    print("\n" + results.text())
    return 0 if succeeded else 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", choices=models.SIZES, default="vit_b16", help="of the models")
    parser.add_argument("--part", nargs="+", choices=_PARTS, default=plan.PARTS, help="what is measured")
    parser.add_argument("--models", nargs="+", type=int, help="numbers of models whose time is taken")
    parser.add_argument("--methods", nargs="+", choices=_METHODS, help="that merge; all that need no data")
    parser.add_argument("--rounds", type=int, help="of what two merged models are compared with")
    parser.add_argument(
        "--plain", nargs="*", type=int, help="numbers of models merged the plain way too; the same ones"
    )
    parser.add_argument("--memory-models", nargs="+", type=int, help="and whose peak memory is taken")
    parser.add_argument("--pairs", type=int, help="how many pairs the pairwise code gets")
    parser.add_argument(
        "--large", action="store_true", help="also the memory of eight ViT-L/14 (11 GB of disk)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the models lie meanwhile (8 GB); a temporary place"
    )
    parser.add_argument("--results", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    small = options.sizes == "tiny"
    # How many models are merged is asked for by the same option.
    options.merge_models = options.models
    for name, value in (_SMALL if small else _FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if min([*options.models, *options.memory_models]) < 2 or options.pairs < 1:
        parser.error("a pair needs two models, and at least one pair is compared")
    if options.rounds < 1:
        parser.error("at least one round is measured")
    if options.results is None:
        # A smoke test leaves no result in the repository.
        options.results = plan.ROOT / ("outputs/benchmarks" if small else "benchmarks/results")
    return options


def _check(parts: Sequence[str]) -> list[str]:
    """Compare the opponents of the chosen parts with golden values and with ours, on tiny models."""
    print("comparing the plain code with golden values and with ours …", flush=True)
    found = []
    with models.written(models.SIZES["tiny"], 3) as suite:
        if set(parts) - {plan.MERGE}:
            for name in opponents.OPPONENTS:
                found += agreement.golden_disagreements(name)
                found += agreement.our_disagreements(suite, name)
        if plan.MERGE in parts:
            for name in merge_opponents.MERGES:
                found += agreement.golden_merge_disagreements(name)
                found += agreement.our_merge_disagreements(suite, name)
    return found


def _measure(size: str, choice: plan.Choice, folder: Path | None, results: "_Results") -> bool:
    progress = plan.Progress(size, 0)
    expected = progress.guess(plan.write_units(choice.models))
    print(f"writing {choice.models} models of size {size}, about {expected:.0f} s …", flush=True)
    started = time.perf_counter()
    with models.written(models.SIZES[size], choice.models, folder=folder) as suite:
        print(f"    {time.perf_counter() - started:.1f} s", flush=True)
        steps = plan.steps(suite, choice)
        succeeded = plan.run(size, steps, lambda step, result: results.keep(size, step, result))
    differing = results.disagreeing(size)
    if differing:
        print(f"Ours and the plain code differ in {', '.join(differing)}.", file=sys.stderr)
    return succeeded and not differing


def _command(given: Sequence[str]) -> str:
    kept, words = [], iter(given)
    for word in words:
        if word in _PLACES:
            next(words)
        elif not word.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks", *kept])


class _Results:
    """`metrics.json` and `merges.json`, each with its `.md`: a part that runs anew replaces its old measurements."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._content: dict[str, dict[str, Any]] = {}
        self._begun: set[tuple[str, str]] = set()

    def keep(self, size: str, step: plan.Step, result: dict[str, Any]) -> None:
        """Add one measurement and write both files, so that an interrupt loses nothing that was measured."""
        name = "merges" if step.part == plan.MERGE else "metrics"
        if name not in self._content:
            self._content[name] = read_json(self._folder / f"{name}.json") or {"sizes": {}}
        content = self._content[name]
        entry = content["sizes"].setdefault(size, {"parts": {}})
        parts = entry["parts"]
        if (size, step.part) not in self._begun:
            self._begun.add((size, step.part))
            parts[step.part] = {
                "date": datetime.now(UTC).date().isoformat(),
                "command": self._command,
                "commit": git_commit(),
                "load": load(),
                "machine": machine(),
                "versions": versions(),
                "measurements": [],
            }
        parts[step.part]["measurements"].append({**step.labels, **result})
        entry["derived"] = _REPORTS[name].derived(parts)
        write_text(self._folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
        write_text(self._folder / f"{name}.md", _REPORTS[name].markdown(content))

    def text(self) -> str:
        """Return the reports of what was measured."""
        return "\n".join(_REPORTS[name].markdown(content) for name, content in self._content.items())

    def disagreeing(self, size: str) -> list[str]:
        """Name the metrics and the methods in which ours and the plain code differ."""
        return [
            name
            for kind, content in self._content.items()
            for name in _REPORTS[kind].disagreeing(content["sizes"].get(size, {"parts": {}})["parts"])
        ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the models are removed, what was measured is kept")
