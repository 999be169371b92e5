"""From measurements to tables: fits, ratios, agreement; the same text on the screen and in `metrics.md`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.agreement import ABSOLUTE, RELATIVE, SMALL, agrees, relative_difference
from benchmarks.models import SIZES

_GIB = 2**30
_STAGES = {
    "opening": "open and hash",
    "gram": "Gram matrices",
    "decompositions": "decompositions",
    "pairs": "pair stage",
}
_OPPONENTS = {"reference_like": "as the released code", "careful": "careful, pair by pair"}

Measurements = Sequence[Mapping[str, Any]]
Parts = Mapping[str, Mapping[str, Any]]


def linear_fit(counts: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Fit seconds = a + b·models by least squares; say how well, by R² and the largest residual."""
    slope, intercept = np.polyfit(counts, seconds, 1)
    residuals = np.asarray(seconds) - (intercept + slope * np.asarray(counts))
    spread = float(((np.asarray(seconds) - np.mean(seconds)) ** 2).sum())
    return {
        "a": float(intercept),
        "b": float(slope),
        "r_squared": 1 - float((residuals**2).sum()) / spread if spread else float("nan"),
        "largest_residual": float(np.abs(residuals).max()),
    }


def differences(measurements: Measurements) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare ours with each opponent over its pairs: opponent → metric → the worst differences, and agreement."""
    ours = {(a, b): values for one in of_kind(measurements, "ours") for a, b, values in one["values"]}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for opponent in _OPPONENTS:
        theirs = {tuple(one["pair"]): one["values"] for one in of_kind(measurements, opponent)}
        pairs = [pair for pair in theirs if pair in ours]
        names = theirs[pairs[0]] if pairs else ()
        found[opponent] = {
            name: {
                "relative": max(relative_difference(ours[pair][name], theirs[pair][name]) for pair in pairs),
                "absolute": max(abs(ours[pair][name] - theirs[pair][name]) for pair in pairs),
                "agrees": all(agrees(ours[pair][name], theirs[pair][name]) for pair in pairs),
            }
            for name in names
        }
    return found


def derived(parts: Parts) -> dict[str, Any]:
    """Compute what follows from the measurements of one size: fit, seconds a pair, ratios, differences."""
    result: dict[str, Any] = {}
    totals = _totals(parts)
    if len(totals) > 2:
        result["fit"] = linear_fit(list(totals), list(totals.values()))
    opponents = measurements_of(parts, "opponents")
    for name in _OPPONENTS:
        seconds = [one["seconds"] for one in of_kind(opponents, name)]
        if seconds:
            entry: dict[str, Any] = {
                "mean": float(np.mean(seconds)),
                "lowest": min(seconds),
                "highest": max(seconds),
                "pairs": len(seconds),
            }
            entry["ratio"] = {str(n): entry["mean"] * _pairs(n) / total for n, total in totals.items()}
            result[name] = entry
    if opponents:
        result["differences"] = differences(opponents)
    return result


def disagreeing(parts: Parts) -> list[str]:
    """Name the metrics in which ours and the careful code differ."""
    metrics = derived(parts).get("differences", {}).get("careful", {})
    return [name for name, one in metrics.items() if not one["agrees"]]


def markdown(results: Mapping[str, Any]) -> str:
    """Write all results as Markdown."""
    lines = ["# The 18 pair metrics: time and memory", ""]
    for size, entry in results["sizes"].items():
        lines += _size(size, entry["parts"])
    return "\n".join(lines).rstrip() + "\n"


def _size(size: str, parts: Parts) -> list[str]:
    found = derived(parts)
    lines = [f"## Models of size `{size}`, {SIZES[size].elements / 1e6:.3g} million parameters", ""]
    lines += _time_table(parts, found)
    lines += _opponent_table(parts, found)
    lines += _memory_table(parts)
    lines += _floor_table(parts)
    lines += _difference_table(found)
    return lines + how_measured(parts)


def _time_table(parts: Parts, found: Mapping[str, Any]) -> list[str]:
    fresh = of_kind(measurements_of(parts, "time"), "fresh")
    if not fresh:
        return []
    again = {one["models"]: one["seconds"] for one in of_kind(measurements_of(parts, "time"), "again")}
    heads = ["models", "pairs", "seconds", *(f"{name}, s" for name in _STAGES.values())]
    heads += ["again from the store, s"]
    heads += [f"{_OPPONENTS[name]} ÷ ours" for name in _OPPONENTS if name in found]
    rows = []
    for one in fresh:
        count = one["models"]
        row = [str(count), str(one["pairs"]), in_seconds(one["seconds"])]
        row += [in_seconds(one["stages"][stage]["seconds"]) for stage in _STAGES]
        row += [in_seconds(again.get(count))]
        row += [f"{found[name]['ratio'][str(count)]:.1f}" for name in _OPPONENTS if name in found]
        rows.append(row)
    lines = ["### Time of ours: fresh store, fresh process", "", *table(heads, rows)]
    if "fit" in found:
        fit = found["fit"]
        lines += [
            f"Seconds = {fit['a']:.2f} + {fit['b']:.2f} · models: R² = {fit['r_squared']:.5f}, "
            f"largest residual {fit['largest_residual']:.2f} s.",
            "",
        ]
    return lines


def _opponent_table(parts: Parts, found: Mapping[str, Any]) -> list[str]:
    names = [name for name in _OPPONENTS if name in found]
    if not names:
        return []
    totals = _totals(parts)
    most = max(totals, default=20)
    measured = measurements_of(parts, "opponents")
    heads = ["pair by pair", "seconds a pair", "lowest to highest", "pairs timed"]
    heads += [f"all {_pairs(most)} pairs of {most} models", "÷ ours", "peak memory"]
    rows = []
    for name in names:
        entry = found[name]
        ratio = entry["ratio"].get(str(most))
        rows.append(
            [
                _OPPONENTS[name],
                in_seconds(entry["mean"]),
                f"{in_seconds(entry['lowest'])} to {in_seconds(entry['highest'])}",
                str(entry["pairs"]),
                _long(entry["mean"] * _pairs(most)),
                "–" if ratio is None else f"{ratio:.1f}",
                in_gib(max(one["peak_bytes"] or 0 for one in of_kind(measured, name))),
            ]
        )
    return ["### Against pairwise code", "", *table(heads, rows)]


def _memory_table(parts: Parts) -> list[str]:
    measured = measurements_of(parts, "memory")
    if not measured:
        return []
    rows = [["imports alone", "", "", in_gib(one["peak_bytes"])] for one in of_kind(measured, "import")]
    for one in all_of_kind(measured, "ours"):
        budget = f"{one['memory_budget']:g} GiB" if one.get("memory_budget") else "default"
        trouble = one.get("failed") or one.get("skipped")
        outcome = [trouble, ""] if trouble else [in_seconds(one["seconds"]), in_gib(one["peak_bytes"])]
        rows.append([f"{one['models']} models", budget, *outcome])
    heads = ["fresh process", "memory budget", "seconds", "peak memory"]
    return ["### Peak resident memory of ours, by the one call", "", *table(heads, rows)]


def _floor_table(parts: Parts) -> list[str]:
    measured = of_kind(measurements_of(parts, "floor"), "floor")
    if not measured:
        return []
    floor = measured[0]
    fresh = {one["models"]: one for one in of_kind(measurements_of(parts, "time"), "fresh")}
    count = max(fresh, default=floor["models"])
    # Of the models and the base.
    scale = (count + 1) / (floor["models"] + 1)
    gram = count * (count + 1) * floor["elements"] / floor["gigaflops"]["float64"] / 1e9
    floors = [
        ("read every byte once, in the page cache", scale * floor["read_seconds"], None),
        ("hash every byte once (SHA-256)", scale * floor["hash_seconds"], "opening"),
        ("Gram matrix by float64 products", gram, "gram"),
        ("one thin float32 SVD a model and matrix", count * floor["svd_seconds_a_model"], "decompositions"),
    ]
    whole = sum(seconds for _, seconds, _ in floors)
    rows = []
    for what, seconds, stage in [*floors, ("all four", whole, "all")]:
        row = [what, in_seconds(seconds), "", ""]
        if stage is not None and count in fresh:
            one = fresh[count]
            ours = one["seconds"] if stage == "all" else one["stages"][stage]["seconds"]
            row[2:] = [in_seconds(ours), f"{ours / seconds:.2f}"]
        rows.append(row)
    heads = [f"the floor, {count} models", "seconds", "our stage, s", "ours ÷ floor"]
    flops = ", ".join(f"{value:.0f} GFLOP/s in {kind}" for kind, value in floor["gigaflops"].items())
    return [
        "### The floor of this machine",
        "",
        *table(heads, rows),
        f"Matrix products reach {flops}; plain reads {floor['bytes'] / floor['read_seconds'] / 1e9:.1f} GB/s.",
        "",
    ]


def _difference_table(found: Mapping[str, Any]) -> list[str]:
    compared = {name: metrics for name, metrics in found.get("differences", {}).items() if metrics}
    if not compared:
        return []
    heads = [
        "metric",
        *(f"{_OPPONENTS[name]}: {kind}" for name in compared for kind in ("relative", "absolute")),
    ]
    heads.append("agrees with the careful one")
    rows = []
    for metric in next(iter(compared.values())):
        row = [f"`{metric}`"]
        for metrics in compared.values():
            row += [f"{metrics[metric]['relative']:.1e}", f"{metrics[metric]['absolute']:.1e}"]
        one = compared.get("careful", {}).get(metric)
        rows.append([*row, "–" if one is None else "yes" if one["agrees"] else "**no**"])
    return [
        "### Worst difference between ours and pairwise code",
        "",
        *table(heads, rows),
        "All sides see the same float32 deltas. The released code adds up in float32 as well, where norms and "
        "singular values of whole task vectors lose digits; ours and the careful code add up in float64. "
        f"To agree is {RELATIVE:g} relative, or {ABSOLUTE:g} absolute below {SMALL:g}.",
        "",
    ]


def how_measured(parts: Parts) -> list[str]:
    """Say how each part was made, and once where."""
    lines = ["### How it was measured", ""]
    places: dict[str, list[str]] = {}
    for part, record in parts.items():
        there = record["machine"]
        libraries = {name: value for name, value in record["versions"].items() if name != "linear_algebra"}
        place = (
            f"{there['processor']}, {there['cores']} cores, {there['memory_gib']} GiB, {there['system']}; "
            + ", ".join(f"{name} {version}" for name, version in libraries.items())
            + "; "
            + ", ".join(record["versions"]["linear_algebra"])
        )
        places.setdefault(place, []).append(part)
        lines.append(
            f"- {part}: {record['date']}, commit {_commit(record['commit'])}, load {record['load']} "
            f"before it began: `{record['command']}`"
        )
    lines += [f"- {', '.join(names)}: on {place}" for place, names in places.items()]
    return [*lines, ""]


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    dirty = " with changes" if commit.endswith("-dirty") else ""
    return commit[:12] + dirty


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""]


def _totals(parts: Parts) -> dict[int, float]:
    return {one["models"]: one["seconds"] for one in of_kind(measurements_of(parts, "time"), "fresh")}


def measurements_of(parts: Parts, part: str) -> Measurements:
    return parts.get(part, {}).get("measurements", [])


def all_of_kind(measurements: Measurements, kind: str) -> list[Mapping[str, Any]]:
    return [one for one in measurements if one["kind"] == kind]


def of_kind(measurements: Measurements, kind: str) -> list[Mapping[str, Any]]:
    """Return the measurements of a kind that succeeded."""
    return [one for one in all_of_kind(measurements, kind) if "failed" not in one and "skipped" not in one]


def _pairs(models: int) -> int:
    return models * (models - 1) // 2


def in_seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _long(seconds: float) -> str:
    return f"{in_seconds(seconds)} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def in_gib(size: int | None) -> str:
    return f"{size / _GIB:.2f} GiB" if size else "–"
