"""From measured merges to tables, and to what they have to show; the same text on the screen and in `merges.md`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.merges import difference, needing_data
from benchmarks.models import SIZES
from benchmarks.report import (
    Measurements,
    Parts,
    all_of_kind,
    how_measured,
    in_gib,
    in_seconds,
    measurements_of,
    of_kind,
    table,
)

_PART = "merge"
_GIB = 2**30
_MOST_MODELS, _MOST_MEMORY = 20, 3.0
# Method, from where, what it is compared with, and how much of that it may take.
_BOUNDS = (
    ("tsv", "ours", "svd_floor", 1.2),
    ("tsv", "from_store", "svd_floor", 0.5),
    ("iso_c", "ours", "svd_floor", 1.2),
    ("ties", "ours", "ties_resident", 1.2),
    ("ties", "from_store", "ties_resident", 1.2),
)
_STORED = {"tsv": "factors in the store", "ties": "thresholds in the store"}
_REFERENCES = {
    "svd_floor": "one thin SVD of each matrix and model",
    "ties_resident": "selection, election and mean on vectors in memory",
}
# float32 SVDs of large matrices; what is drawn at random has no value to compare.
_LARGEST_DIFFERENCE = 1e-2
_RANDOM = ("dare",)


@dataclass(frozen=True)
class Claim:
    """Something the measurements have to show.

    Attributes:
        what: whose measurement.
        value: the measured number.
        below: what it may be at most.
        shown: the measurement in words.
    """

    what: str
    value: float
    below: float
    shown: str

    @property
    def holds(self) -> bool:
        """Whether the measurement shows it."""
        return self.value <= self.below


def claims(measurements: Measurements) -> list[Claim]:
    """List what can be said of what has to be shown; what was not measured is left out."""
    found = [_ratio(measurements, *bound) for bound in _BOUNDS]
    return [one for one in (*found, _memory(measurements)) if one is not None]


def derived(parts: Parts) -> dict[str, Any]:
    """Compute what follows from the measurements of one size: the claims, and the differences of values."""
    measurements = measurements_of(parts, _PART)
    return {
        "claims": [asdict(one) | {"holds": one.holds} for one in claims(measurements)],
        "differences": [
            {"method": method, "models": count, "relative": value}
            for (method, count), value in differences(measurements).items()
        ],
    }


def differences(measurements: Measurements) -> dict[tuple[str, int], float]:
    """Estimate how far ours and the plain merge are apart: (method, models) → ‖difference‖ / ‖plain‖."""
    plain = {(one["method"], one["models"]): one["sketch"] for one in of_kind(measurements, "plain")}
    found: dict[tuple[str, int], float] = {}
    for kind in ("ours", "from_store"):
        for one in of_kind(measurements, kind):
            place = one["method"], one["models"]
            if place in plain and one["method"] not in _RANDOM:
                found[place] = max(found.get(place, 0.0), difference(one["sketch"], plain[place]))
    return found


def disagreeing(parts: Parts) -> list[str]:
    """Name the methods in which ours and the plain merge differ."""
    found = differences(measurements_of(parts, _PART))
    return sorted({method for (method, _), value in found.items() if not value <= _LARGEST_DIFFERENCE})


def markdown(results: Mapping[str, Any]) -> str:
    """Write all results as Markdown."""
    lines = ["# The merge methods: time and memory", ""]
    for size, entry in results["sizes"].items():
        measurements = measurements_of(entry["parts"], _PART)
        title = f"## Models of size `{size}`, {SIZES[size].elements / 1e6:.3g} million parameters"
        lines += [title, "", *_claim_table(measurements), *_method_table(measurements)]
        lines += [*_selection_table(measurements), *how_measured(entry["parts"])]
    return "\n".join(lines).rstrip() + "\n"


def _ratio(measurements: Measurements, method: str, kind: str, reference: str, below: float) -> Claim | None:
    """Compare the fastest of several merges of two models with the fastest of its reference."""
    ours = _merge_seconds(_merges(measurements, kind, method, 2))
    theirs = [one["seconds"] for one in of_kind(measurements, reference)]
    if not ours or not theirs:
        return None
    value = min(ours) / min(theirs)
    what = f"`{method}`, 2 models" + (f", {_STORED[method]}" if kind == "from_store" else "")
    shown = (
        f"{in_seconds(min(ours))} s ({_range(ours)}) ÷ {in_seconds(min(theirs))} s ({_range(theirs)}), "
        f"{_REFERENCES[reference]}"
    )
    return Claim(what, value, below, f"{shown}: {value:.2f}")


def _memory(measurements: Measurements) -> Claim | None:
    peaks: dict[str, int] = {}
    for one in [*of_kind(measurements, "ours"), *of_kind(measurements, "from_store")]:
        if one["models"] == _MOST_MODELS and one["peak_bytes"]:
            peaks[one["method"]] = max(peaks.get(one["method"], 0), one["peak_bytes"])
    if not peaks:
        return None
    method = max(peaks, key=lambda name: peaks[name])
    what = f"peak memory of {_MOST_MODELS} models, {len(peaks)} methods"
    value = peaks[method] / _GIB
    return Claim(what, value, _MOST_MEMORY, f"at most {value:.2f} GiB, by `{method}`")


def _claim_table(measurements: Measurements) -> list[str]:
    rows = [
        [one.what, one.shown, f"{one.below:g}", "yes" if one.holds else "**no**"]
        for one in claims(measurements)
    ]
    if not rows:
        return []
    return [
        "### What has to be shown",
        "",
        *table(["of", "measured", "at most", "holds"], rows),
        "A merge is timed from the moment the models are open, in a fresh process, from files in the page cache and "
        "with an empty store where nothing else is said. Of several rounds the fastest counts, on both sides; all of "
        "them are in brackets.",
        "",
    ]


def _method_table(measurements: Measurements) -> list[str]:
    apart = differences(measurements)
    ours = [*all_of_kind(measurements, "ours"), *all_of_kind(measurements, "from_store")]
    places = dict.fromkeys((one["models"], one["method"], one["kind"]) for one in ours)
    rows = [_method_row(measurements, *place, apart) for place in sorted(places, key=_in_order)]
    if not rows:
        return []
    heads = ["method", "models", "open and hash, s", "merge, s", "plain, s", "plain ÷ ours"]
    heads += ["peak", "peak, plain", "difference"]
    return [
        "### Each method against a plain whole-model implementation",
        "",
        *table(heads, rows),
        "Plain is what reads all models whole, makes dictionaries of deltas and merges those. Ours, for the ratio, is "
        "opening and merging. Each peak is that of a process, with its imports. The difference, ‖ours − plain‖ ÷ "
        f"‖plain‖, is estimated from {len(_sketched(measurements))} random sums; DARE is random on both sides. "
        f"Left out, as they need images: {', '.join(f'`{name}`' for name in needing_data()) or 'none'}.",
        "",
        *_skipped(measurements),
    ]


def _method_row(
    measurements: Measurements,
    count: int,
    method: str,
    kind: str,
    apart: Mapping[tuple[str, int], float],
) -> list[str]:
    stored = kind == "from_store"
    name = f"`{method}`" + (f", {_STORED[method]}" if stored else "")
    runs = _merges(measurements, kind, method, count)
    if not runs:
        return [name, str(count), "failed", *["–"] * 6]
    best = min(runs, key=lambda one: one["seconds"])
    plain = _merges(measurements, "plain", method, count)
    seconds = plain[0]["seconds"] if plain else None
    between = apart.get((method, count))
    return [
        name,
        str(count),
        in_seconds(best["stages"]["opening"]["seconds"]),
        in_seconds(best["stages"]["merge"]["seconds"]),
        in_seconds(seconds),
        "–" if seconds is None else f"{seconds / best['seconds']:.1f}",
        in_gib(max(one["peak_bytes"] or 0 for one in runs)),
        in_gib(plain[0]["peak_bytes"] if plain else None),
        "–" if between is None else f"{between:.0e}",
    ]


def _skipped(measurements: Measurements) -> list[str]:
    """Say why some have no figures."""
    sentences = []
    for one in measurements:
        trouble = one.get("skipped") or one.get("failed")
        if trouble:
            which = {"plain": "the plain way", "from_store": "from the store"}.get(one["kind"], "")
            of = ", ".join(word for word in (one.get("method", one["kind"]), which) if word)
            sentences.append(f"- {of}, {one['models']} models: {trouble}")
    return [*sentences, ""] if sentences else []


def _selection_table(measurements: Measurements) -> list[str]:
    """Show which exact selection of a magnitude was the fastest."""
    runs = of_kind(measurements, "ties_resident")
    if not runs:
        return []
    best = min(runs, key=lambda one: one["seconds"])
    rows = [[f"select by `{name}`", in_seconds(value)] for name, value in best["selections"].items()]
    rows += [
        ["elect signs, trimming included", in_seconds(best["stages"]["election"]["seconds"])],
        ["disjoint mean", in_seconds(best["stages"]["mean"]["seconds"])],
        [f"**all, selecting by `{best['selection']}`**", in_seconds(best["seconds"])],
    ]
    return ["### The steps of TIES on two vectors in memory", "", *table(["step", "seconds"], rows)]


def _merges(measurements: Measurements, kind: str, method: str, count: int) -> list[Mapping[str, Any]]:
    return [one for one in of_kind(measurements, kind) if one["method"] == method and one["models"] == count]


def _merge_seconds(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [one["stages"]["merge"]["seconds"] for one in runs]


def _range(seconds: Sequence[float]) -> str:
    return ", ".join(in_seconds(value) for value in seconds)


def _in_order(place: tuple[int, str, str]) -> tuple[int, str, bool]:
    count, method, kind = place
    return count, method, kind == "from_store"


def _sketched(measurements: Measurements) -> list[float]:
    return next((one["sketch"] for one in measurements if "sketch" in one), [])
