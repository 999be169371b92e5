"""Will these fine-tuned models merge well, with which method, and why?

The way of the data, package by package:

1. `data`: tasks, their inputs, calibration samples.
2. `models`: CLIP, its zero-shot heads, the mini CLIP.
3. `finetuning`: one model per task, with optional penalties.
4. `weights`: checkpoints on disk, in every layout that is read.
5. `task_vectors`: what fine-tuning changed.
6. `profiles`: the evidence about each model (Gram matrices, singular vectors, activations, gradients).
7. `metrics`: how two models relate, as arithmetic on T×T matrices.
8. `merging`: one model from many.
9. `evaluation`: how good a merge is.
10. `prediction`: the outcome of a merge predicted from metrics, and how well.

`pipeline` runs these steps in order, `reporting` shows what was found, `commands` holds the command lines.

Examples:
    >>> from mergeability import measure, merging
    >>> from mergeability.examples import tiny_task_vectors
    >>> models = tiny_task_vectors(cars=[3, 0], svhn=[1, 2])  # or TaskVectors.load({"cars": path, ...}, base=path)
    >>> measure(models)["task_vector_dot_product"].tolist()
    [3.0]
    >>> merging.Average()(models)["weight"]
    tensor([2., 1.])
"""

import lazy_loader

__version__ = "0.1.0"

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
