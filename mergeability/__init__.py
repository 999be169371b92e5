"""Will these fine-tuned models merge well, with which method, and why?

The data flow through the packages:

1. `data`: tasks, their inputs, calibration samples.
2. `models`: CLIP, its zero-shot heads, the mini CLIP.
3. `finetuning`: one model per task, with optional penalties.
4. `weights`: checkpoints on disk, in all supported layouts.
5. `task_vectors`: the changes of the weights by fine-tuning.
6. `profiles`: stored quantities of each model (Gram matrices, singular vectors, activations, gradients).
7. `metrics`: pairwise metrics, computed from T×T matrices.
8. `merging`: merge methods.
9. `evaluation`: accuracies of merges.
10. `prediction`: predicts outcomes of merges from metrics, and validates these predictions.

`pipeline` runs these steps in order, `reporting` writes reports, and `commands` contains the command lines.

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

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
