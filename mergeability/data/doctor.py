"""Check a task's images before training on them."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mergeability.data.contact_sheet import Cell, contact_sheet
from mergeability.data.image_cache import originals
from mergeability.data.inputs import SPLITS, Split
from mergeability.data.real.image_files import shown
from mergeability.data.real.source import ImageSource, pixel_remarks
from mergeability.data.tasks import Task
from mergeability.data.texts.corpus import TextCorpus
from mergeability.errors import UserError
from mergeability.files import atomic_file, write_text
from mergeability.progress import track

logger = logging.getLogger(__name__)

REPORT, SHEET = "doctor.json", "contact_sheet.png"
# Many correct datasets share a few photographs between train and test; above this share it is contamination.
MOST_SHARED = 0.01
# Examples that are named, and pictures on the contact sheet: all classes, and several of each if they are few.
_NAMED, _CELLS, _MOST_OF_A_CLASS = 5, 48, 4


@dataclass
class Findings:
    """Hold the statistics of each split, and the problems and remarks."""

    task: str
    source: str
    columns: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Glance:
    """Hold the facts kept about one image."""

    digest: bytes
    height: int
    width: int


def examine(task: Task, folder: Path) -> Findings:
    """Check a task's images; write `doctor.json` and `contact_sheet.png` to a folder.

    It checks the splits and columns, the number and order of the classes, the range of the labels,
    images that cannot be decoded, exact duplicates that train and test share, and the balance of the classes.

    Args:
        task: the task.
        folder: folder of the report.

    Raises:
        UserError: the task consists of texts; or the images have problems: the message lists all of them, and the
            report is still written.
    """
    source = task.source
    if isinstance(source, TextCorpus):
        raise UserError(
            f"doctor=true checks images, but task {task.name!r} consists of texts. Remove doctor=true."
        )
    findings = Findings(
        task.name, source.kind if isinstance(source, ImageSource) else type(source).__name__.lower()
    )
    if isinstance(source, ImageSource):
        try:
            findings.columns = {
                shown(name): list(map(shown, columns)) for name, columns in source.tables.columns.items()
            }
        except UserError as error:
            # The dataset does not exist, so checking other splits is pointless.
            findings.problems.append(str(error))
            _write(task, findings, folder)
            raise
    digests: dict[Split, dict[bytes, str]] = {}
    for split in SPLITS:
        try:
            digests[split] = _examine_split(task, split, findings)
        except UserError as error:
            sentence = str(error).removeprefix(f"Task {task.name!r}: ")
            if sentence not in findings.problems:
                findings.problems.append(sentence)
    _compare(digests, findings)
    _write(task, findings, folder)
    if findings.problems:
        raise UserError(
            f"Task {task.name!r} cannot be used for training: {' '.join(findings.problems)} The report is in {folder}."
        )
    if findings.notes or findings.left_out:
        count = len(findings.notes) + len(findings.left_out)
        logger.info(
            "%s can be used for training, with %d remarks (above). Please also check %s.",
            task.name,
            count,
            folder / SHEET,
        )
    else:
        logger.info("%s has no problems. Please also check %s.", task.name, folder / SHEET)
    return findings


def _examine_split(task: Task, split: Split, findings: Findings) -> dict[bytes, str]:
    """Decode a split; return the names of its images by content hash."""
    images = originals(task, split)
    labels = images.labels
    if isinstance(task.source, ImageSource):
        findings.left_out += [f"{split}: {remark}" for remark in task.source.left_out(split)]
    broken: list[str] = []
    changed: dict[str, list[str]] = {}
    digests: dict[bytes, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    repeated = 0
    for image in track(images.each(_glance), f"{task.name}, {split} images", len(labels)):
        if image.value is None:
            broken.append(f"{image.name} ({image.error})")
            continue
        if image.remark is not None:
            changed.setdefault(image.remark, []).append(image.name)
        sizes[image.value.height, image.value.width] += 1
        repeated += image.value.digest in digests
        digests.setdefault(image.value.digest, image.name)
    counts = np.bincount(labels, minlength=len(task.class_names))
    findings.splits[split] = {
        "images": len(labels),
        "undecodable": len(broken),
        "undecodable_examples": broken[:_NAMED],
        "repeated": repeated,
        "sizes": {
            "different": len(sizes),
            "most_common": list(sizes.most_common(1)[0][0]) if sizes else None,
        },
        "images_by_class": {name: int(count) for name, count in zip(task.class_names, counts, strict=True)},
    }
    findings.left_out += [f"{split}: {remark}" for remark in pixel_remarks(split, broken, changed)]
    _judge_split(task, split, broken, counts, findings)
    logger.info(
        "%s, %s: %d images of %d classes, %d to %d per class, %d that cannot be decoded",
        task.name,
        split,
        len(labels),
        int((counts > 0).sum()),
        counts.min(),
        counts.max(),
        len(broken),
    )
    return digests


def _judge_split(
    task: Task, split: Split, broken: Sequence[str], counts: Int64[np.ndarray, "classes"], findings: Findings
) -> None:
    layout = task.source.layout if isinstance(task.source, ImageSource) else None
    if broken and len(broken) > (layout.max_corrupt if layout else 0) * counts.sum():
        findings.problems.append(
            f"{len(broken)} of {counts.sum()} {split} images cannot be decoded, for example {broken[0]}. Repair"
            " the dataset."
        )
    elif broken:
        findings.notes.append(f"{len(broken)} {split} images cannot be decoded and are left out.")
    absent = [task.class_names[label] for label in np.flatnonzero(counts == 0).tolist()]
    if absent:
        sentence = f"{len(absent)} classes have no {split} images, such as {absent[0]!r}."
        (findings.problems if split == "train" else findings.notes).append(sentence)
    elif split == "train" and counts.max() > 10 * counts.min():
        findings.notes.append(f"Classes are unbalanced: {counts.min()} to {counts.max()} {split} images.")


def _compare(digests: Mapping[Split, Mapping[bytes, str]], findings: Findings) -> None:
    """Search for test images that are identical, pixel by pixel, to training or validation images."""
    test = digests.get("test", {})
    for split in ("train", "validation"):
        shared = [(name, digests[split][key]) for key, name in test.items() if key in digests.get(split, {})]
        if split in digests and test:
            findings.splits["test"][f"shared_with_{split}"] = len(shared)
        if not shared:
            continue
        sentence = (
            f"{len(shared)} of {len(test)} different test images are also {split} images, pixel for pixel, such as "
            f"{shared[0][0]} and {shared[0][1]}."
        )
        contaminated = len(shared) > MOST_SHARED * len(test)
        (findings.problems if contaminated else findings.notes).append(
            f"{sentence} Accuracies on this copy are meaningless. Use another copy."
            if contaminated
            else sentence
        )


def _glance(pixels: UInt8[Tensor, "3 H W"]) -> _Glance:
    height, width = pixels.shape[-2:]
    data = hashlib.blake2b(f"{height}×{width}".encode(), digest_size=16)
    data.update(pixels.contiguous().numpy().data)
    return _Glance(data.digest(), height, width)


def _write(task: Task, findings: Findings, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REPORT, json.dumps(asdict(findings), indent=1, ensure_ascii=False))
    for note in [*findings.left_out, *findings.notes]:
        logger.info("%s: %s", task.name, note)
    if findings.splits:
        split: Split = next(split for split in SPLITS if split in findings.splits)
        with atomic_file(folder / SHEET) as temporary:
            contact_sheet(_cells(task, split)).save(temporary, "PNG")


def _cells(task: Task, split: Split) -> list[Cell]:
    """Choose the first images of each class."""
    images = originals(task, split)
    of_each = min(max(_CELLS // len(task.class_names), 1), _MOST_OF_A_CLASS)
    chosen = [
        int(row)
        for label in range(len(task.class_names))
        for row in np.flatnonzero(images.labels == label)[:of_each]
    ]
    return [
        Cell(image.value, f"{image.label}: {task.class_names[image.label]}")
        for image in images.each(torch.clone, chosen)
        if image.value is not None
    ]
