"""Compute units of work in several local processes or on a Ray cluster.

Data shared by the units, such as encoders and images, is sent to each worker once, not with every unit. Workers share
results through the store. A worker that cannot reach the store's folder, or
whose store is in memory, returns the computed entries together with its result.
"""

import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mergeability.context.ray_cluster import check_answer, prepare_ray
from mergeability.errors import UserError, one_line, short
from mergeability.files import lock
from mergeability.progress import Progress
from mergeability.store import Store
from mergeability.store.store import Made

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL_RAY = "ray"
"""The address of a Ray cluster that is started on this machine for the run."""

# The number of consecutive losses of workers after which a map fails.
_TRIES = 3
_ADDRESS_EXAMPLES = "ray://head-node:10001, head-node:6379, auto, or ray"


@dataclass(frozen=True)
class Outcome:
    """Hold a worker's reply: the result of a unit of work, and the store entries that the worker created."""

    result: Any
    made: Made


def check_workers(workers: int | str, cores: int) -> None:
    """Check the setting `workers`; warn if there are more workers than cores.

    Args:
        workers: number of processes, at least 1, or the address of a Ray cluster.
        cores: number of cores to compare with.

    Raises:
        UserError: it is neither, or Ray is not installed.

    Examples:
        >>> from mergeability.context import check_workers
        >>> check_workers(2, cores=4)
        >>> check_workers(0, cores=4)
        Traceback (most recent call last):
        mergeability.errors.UserError: Expected workers to be a whole number of at least 1, got 0.
    """
    if isinstance(workers, str) and not workers.strip().removeprefix("-").isdigit():
        if not workers.strip() or (workers != LOCAL_RAY and workers != "auto" and ":" not in workers):
            raise UserError(
                f"Expected workers to be a number of processes or the address of a Ray cluster ({_ADDRESS_EXAMPLES}), "
                f"got {workers!r}."
            )
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                f"workers={workers} needs Ray, which is not installed. Run: uv pip install 'mergeability[ray]', or "
                "choose a number of processes."
            )
    elif isinstance(workers, bool | str) or workers < 1:
        raise UserError(f"Expected workers to be a whole number of at least 1, got {workers}.")
    elif workers > cores:
        logger.warning(
            "workers=%d exceeds the %d cores available to this process, so workers compete for cores.",
            workers,
            cores,
        )


def spread(
    unit: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    store: Store,
    workers: int | str,
    cores: int,
    progress: Progress,
    description: str,
    gpus: int = 0,
) -> list[Result]:
    """Compute `unit(item)` for every item in other processes, and return the results in the same order.

    The units of a killed worker are repeated by another one.

    Args:
        unit: function that processes one item.
        items: the items to process.
        store: the one that the unit uses.
        workers: how many processes, or the address of a Ray cluster.
        cores: of this machine, shared by its processes.
        progress: wraps the loop.
        description: description of the work, for the progress.
        gpus: number of GPUs for the units, one per worker; 0 if they run on the CPU.

    Raises:
        UserError: a unit fails, workers are killed repeatedly, or the cluster does not respond.
    """
    results: dict[int, Result] = {}
    payload = _pickled((unit, store))

    def outcomes() -> Iterator[None]:
        lost = 0
        while len(results) < len(items):
            missing = {place: items[place] for place in range(len(items)) if place not in results}
            finished = len(results)
            try:
                done = (
                    _on_ray(payload, missing, workers, on_gpu=gpus > 0)
                    if isinstance(workers, str)
                    else _in_processes(payload, missing, workers, cores, gpus)
                )
                for place, outcome in done:
                    store.take(outcome.made)
                    results[place] = outcome.result
                    yield
            except BrokenProcessPool as error:
                lost = lost + 1 if len(results) == finished else 1
                if lost == _TRIES:
                    raise UserError(
                        f"Worker processes were killed {_TRIES} times while {description} was computed,"
                        " perhaps because memory was full. Choose fewer workers; finished results are in the"
                        " store."
                    ) from error
                logger.warning(
                    "A worker process was killed while %s was computed; its work is repeated.", description
                )

    for _ in progress(outcomes(), description, len(items)):
        pass
    return [results[place] for place in range(len(items))]


def _in_processes(
    payload: bytes, items: Mapping[int, Any], workers: int, cores: int, gpus: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield places and outcomes in the order in which they are finished."""
    import joblib

    chosen = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, min(cores // workers, int(chosen) if chosen.isdigit() else cores))
    workers = min(workers, len(items), gpus or workers)
    with tempfile.TemporaryDirectory(prefix="mergeability-") as folder:
        file = Path(folder) / "payload"
        file.write_bytes(payload)
        with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
            options: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "n_jobs"}
            pool: Any = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", **options)
            yield from pool(
                joblib.delayed(_from_file)(str(file), place, item, gpus) for place, item in items.items()
            )


def _on_ray(
    payload: bytes, items: Mapping[int, Any], address: str, *, on_gpu: bool
) -> Iterator[tuple[int, Outcome]]:
    """Yield places and outcomes in the order in which they are finished; Ray repeats the work of lost workers."""
    import ray  # pyright: ignore[reportMissingImports]
    import ray.exceptions  # pyright: ignore[reportMissingImports]

    connect(address)
    shared = ray.put(payload)
    remote = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=_TRIES)(_from_bytes)
    waiting = {remote.remote([shared], place, item): place for place, item in items.items()}
    try:
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            place = waiting.pop(ready)
            try:
                yield place, ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise BrokenProcessPool(str(error)) from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def connect(address: str) -> None:
    """Connect to a Ray cluster unless this process is connected already; the address `ray` starts a local cluster.

    Raises:
        UserError: nothing answers at the address.
    """
    prepare_ray()
    import ray  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        return
    instead = f"set workers={LOCAL_RAY}, or a number of processes"
    if address != LOCAL_RAY:
        check_answer(address, "workers", instead)
    try:
        ray.init(
            address="local" if address == LOCAL_RAY else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == LOCAL_RAY else None,
            runtime_env={
                "env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            },
        )
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"Cannot use the Ray cluster given by workers={address}: {short(one_line(error), 200)}. Start a "
            f"cluster with ray start --head, or {instead}."
        ) from error


def _from_file(file: str, place: int, item: Any, gpus: int = 0) -> tuple[int, Outcome]:
    if gpus and not _loaded.name:
        take_gpu(gpus)
    if _loaded.name != file:
        _loaded.load(file, Path(file).read_bytes())
    return place, _loaded.perform(item)


def take_gpu(count: int, folder: Path | None = None) -> int | None:
    """Restrict this process to one GPU that no other worker uses; call this before CUDA is initialised.

    Args:
        count: number of GPUs.
        folder: where workers say which one they have; one for each parent process by default.

    Returns:
        The number of the GPU; None if all are in use.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"mergeability-gpus-{os.getppid()}"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        file = (folder / str(number)).open("w")
        if lock(file.fileno(), wait=False):
            # Keep the lock open until this process ends, which reserves the GPU.
            _held.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
            return number
        file.close()
    return None


_held: list[Any] = []


def _from_bytes(reference: list, place: int, item: Any) -> Outcome:
    import ray  # pyright: ignore[reportMissingImports]

    (one,) = reference
    if _loaded.name != str(one):
        _loaded.load(str(one), ray.get(one))
    return _loaded.perform(item)


class _Loaded:
    """The last payload that this worker unpickled, which is reused, with its caches, for all units of a map."""

    name = ""

    def load(self, name: str, payload: bytes) -> None:
        import pickle

        # Unpickling is safe here: these bytes come from the parent process, never from a user's file.
        self.unit, self.store = pickle.loads(payload)
        self.name = name

    def perform(self, item: Any) -> Outcome:
        with self.store.collecting() as made:
            result = self.unit(item)
        return Outcome(result, made)


_loaded = _Loaded()


def _pickled(value: Any) -> bytes:
    """Pickle functions that are defined inside others, too, and images that are mapped from files as their place."""
    from cloudpickle import CloudPickler

    class Pickler(CloudPickler):
        def reducer_override(self, obj: Any) -> Any:
            place = getattr(obj, "mapped_from", None) if type(obj).__name__ == "Tensor" else None
            if place is not None:
                return _mapped, place
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _mapped(path: Path, name: str) -> Any:
    from mergeability.weights.safetensors_file import TensorFile

    return TensorFile(path).mapped(name)
