"""Choose the validation images at random, stratified by class if a class would otherwise be missing."""

import numpy as np
from jaxtyping import Bool, Int64

# At most one in this many images is held out to cover all classes.
_LARGEST_PART = 4


def held_out_by_class(
    labels: Int64[np.ndarray, "N"], order: Int64[np.ndarray, "N"], count: int, most: int, shared: bool
) -> Bool[np.ndarray, "N"]:
    """Return a mask of the images that are held out.

    These are the first `count` images of a random order, if then every class with two or more images is in both parts.
    Otherwise the draw is stratified with at least one image per class, and up to a quarter of the images may be held
    out; if that does not suffice, the plain draw is used. The only image of a class is not held out.

    Args:
        labels: of all images.
        order: a permutation of them.
        count: number of images to hold out.
        most: maximum number of images to hold out.
        shared: whether the other images are used for training, so that each class must also be among them.

    >>> labels = np.array([0] * 9 + [1])
    >>> held_out_by_class(labels, np.arange(10), 2, 5, shared=False).nonzero()[0]
    array([0, 9])
    """
    marked = np.zeros(len(labels), dtype=bool)
    marked[order[:count]] = True
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    drawn = np.bincount(of_class[marked], minlength=len(sizes))
    at_most = sizes - 1 if shared else sizes
    at_least = np.minimum(at_most, 1)
    complete = ((drawn >= at_least) & ((drawn <= at_most) | (sizes < 2))).all()
    least, room = int(at_least.sum()), int(at_most.sum())
    largest = int(sizes[at_least > 0].sum()) // _LARGEST_PART
    if count == 0 or complete or room < count or least > min(most, max(count, largest)):
        return marked
    wanted = _shares(sizes, max(count, least), at_least, at_most)
    marked[:] = False
    # The order of the draw within each class, classes one after the other.
    grouped = order[np.argsort(of_class[order], kind="stable")]
    for start, number in zip((np.cumsum(sizes) - sizes).tolist(), wanted.tolist(), strict=True):
        marked[grouped[start : start + number]] = True
    return marked


def _shares(
    sizes: Int64[np.ndarray, "classes"],
    count: int,
    at_least: Int64[np.ndarray, "classes"],
    at_most: Int64[np.ndarray, "classes"],
) -> Int64[np.ndarray, "classes"]:
    """Divide `count` among classes in proportion to their sizes, within bounds, by the largest remainders."""
    exact = count * sizes / sizes.sum()
    shares = np.clip(np.floor(exact).astype(np.int64), at_least, at_most)
    while shares.sum() < count and (shares < at_most).any():
        shares[np.argmax(np.where(shares < at_most, exact - shares, -np.inf))] += 1
    while shares.sum() > count and (shares > at_least).any():
        shares[np.argmin(np.where(shares > at_least, exact - shares, np.inf))] -= 1
    return shares
