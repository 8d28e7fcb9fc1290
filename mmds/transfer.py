"""Bringing batches to a device while the one before is being computed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mmds.jagged import Jagged


def map_tensors(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return `batch` with `function` of each tensor (and each `Jagged`) in it; dicts, lists and tuples are kept."""
    if isinstance(batch, dict):
        return type(batch)((key, map_tensors(function, value)) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(function, value) for value in batch)
    return function(batch) if hasattr(batch, "to") else batch


def to_device(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield `batches` on `device`.

    On CUDA each batch is copied on a stream of its own, one batch ahead of the one that is yielded; batches in pinned
    memory are copied without waiting.
    """
    if device.type != "cuda":
        for batch in batches:
            yield map_tensors(lambda tensor: tensor.to(device), batch)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)
            done = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = moved, done
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Any, done: torch.cuda.Event, device: torch.device) -> Any:
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    # Its memory belongs to the copying stream, which must not use it again while this one does.
    map_tensors(lambda tensor: _record(tensor, current), batch)
    return batch


def _record(tensor: Any, stream: torch.cuda.Stream) -> None:
    for part in (tensor.values, tensor.offsets) if isinstance(tensor, Jagged) else (tensor,):
        part.record_stream(stream)
