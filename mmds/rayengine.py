"""Units of a conversion as tasks of a Ray cluster.

Each task writes one unit to the destination, which all nodes must reach, and answers what it has written; this process says
that the unit is done. A task whose worker or node dies is given out again: it writes the same shard once more, so nothing
comes twice and nothing is lost. At most two tasks per CPU are under way, and fewer if their items carry much data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmds.errors import SourceError, missing, printable
from mmds.unitjob import Part, UnitJob
from mmds.units import Record
from mmds.work import nbytes

TRIES = 10  # of one unit: a node that dies takes all of its tasks with it, whatever they do
AHEAD = 2  # tasks per CPU: one that runs and one that waits
MOST = 2**30  # bytes that the items of all of these may carry, but for one task with more


@contextmanager
def cluster() -> Iterator[None]:
    """Belong to a Ray cluster: as before, or to the one of `$RAY_ADDRESS`, or of this machine, or to a new one here."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing("ray[data]", "ray", "engine='ray'") from None
    return ray


def in_ray(job: UnitJob, parts: Iterator[tuple[int, Part]], num_workers: int | None) -> Iterator[Record]:
    """Do units on the `cluster` that this process belongs to. Yields what was done, in no order.

    `num_workers` is how many units are done at the same time; by default, one per CPU.
    Raises `SourceError` of a task, or if a unit ends `TRIES` workers.
    """
    ray = _ray()
    shared = ray.put(job)
    task = ray.remote(num_cpus=1, max_retries=0)(_do)
    pending: dict[Any, tuple[int, Part, int]] = {}  # by reference: unit, its part of the source, how often it was tried
    carried = 0  # bytes
    try:
        while True:
            cpus: float = ray.cluster_resources().get("CPU", 1)
            limit = num_workers or AHEAD * max(1, int(cpus))
            while len(pending) < limit and carried < MOST and (one := next(parts, None)) is not None:
                pending[task.remote(shared, *one)] = (*one, 1)
                carried += _nbytes(one[1])
            if not pending:
                return
            (done,), _ = ray.wait(list(pending), num_returns=1)
            unit, part, tries = pending.pop(done)
            try:
                record: Record = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except ray.exceptions.RayError as error:  # its worker or its node has died
                if tries >= TRIES:
                    raise SourceError(
                        f"{printable(job.source)}: unit {unit} (items {_span(part)}) was tried {tries} times, and its worker "
                        f"died each time: {printable(str(error).splitlines()[0], 500)}. Look for the item that does that with "
                        "engine='local', which names it"
                    ) from error
                pending[task.remote(shared, unit, part)] = unit, part, tries + 1
                continue
            carried -= _nbytes(part)
            yield record
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _do(job: UnitJob, unit: int, part: Part) -> Record:
    return job.do(unit, part)


def _own(error: Any) -> BaseException:
    """Return the exception that a task has raised."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, Exception) else error


def _nbytes(part: Part) -> int:
    return 0 if isinstance(part, range) else sum(map(nbytes, part))


def _span(part: Part) -> str:
    if isinstance(part, range):
        return f"{part.start} to {part.stop - 1}"
    return f"'{printable(part[0][0])}' to '{printable(part[-1][0])}'"
