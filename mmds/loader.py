"""`Loader`: batches gathered by threads of this process, so that no batch ever has to travel between processes."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from mmds.errors import FormatError, missing, printable

try:
    import torch
    from torch.utils.data import default_collate
    from torch.utils.data._utils.pin_memory import pin_memory as pinned
except ImportError:
    raise missing("torch", "torch", "Loader") from None

from mmds.dataset import MemoryMappedDataset
from mmds.fields import Image
from mmds.images import ImageBatch, PictureError
from mmds.permutation import Permutation
from mmds.samplers import this_rank
from mmds.schedule import BatchSamplerSchedule, OrderSchedule, Planned, SamplerSchedule, Schedule
from mmds.transfer import to_device

NdArray = np.ndarray[Any, Any]


class Loader:
    """Batches of a map-style dataset, read ahead by threads: what `DataLoader` yields, without worker processes.

    Made for `MemoryMappedDataset`, whose batches are gathered at the speed of memory; any other map-style dataset works,
    as far as its samples can be read by several threads at once.

    Args:
        dataset: the samples.
        batch_size: samples per batch, on each rank.
        shuffle: a new random order in each epoch, which is a pure function of `seed` and the epoch.
        num_threads: how many threads read; by default as many as there are cores. 0: none, batches are read when they
            are asked for. Batches do not depend on it.
        drop_last: whether the last samples, too few for a batch on every rank, are left out.
        sampler, batch_sampler: as in `DataLoader`. They decide themselves what each rank gets; but the order of an
            `mmds.BlockShuffleSampler` is dealt to the ranks here.
        collate_fn: makes a batch of a list of samples, as in `DataLoader`.
        images: what to make of pictures: operations of `mmds.images` for all fields of pictures, such as
            ``[RandomResizedCrop(224), RandomHorizontalFlip()]``; an `ImageBatch`; or a dict from field to one of these.
            They are decoded straight into the batch. What is random is a pure function of `seed`, the epoch and the
            sample's place in it.
        batch_transform: a function of a collated batch; runs in the threads.
        pin_memory: whether batches are copied to page-locked memory; by default if `device` is a CUDA device.
        device: where batches are brought to.
        rank, world_size: by default those of `torch.distributed`, if it is initialised when an epoch begins.
        prefetch_factor: how many batches per thread are read ahead.
        release: whether pages of the file leave this process's memory when a batch has been copied from them. They stay
            in the page cache. For jobs that are killed when their RSS, which counts such pages, is too large.

    After each epoch the next one begins; `set_epoch` chooses another. An exception in a thread is raised by the loop, at
    the batch that it belongs to, with a note that names the samples. Leaving the loop ends all threads.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_threads: int | None = None,
        drop_last: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        collate_fn: Callable[[Any], Any] | None = None,
        images: Any = None,
        batch_transform: Callable[[Any], Any] | None = None,
        pin_memory: bool | None = None,
        device: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch_factor: int = 2,
        release: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.drop_last = dataset, batch_size, seed, drop_last
        self.shuffle, self.sampler, self.batch_sampler = shuffle, sampler, batch_sampler
        self.num_threads = len(os.sched_getaffinity(0)) if num_threads is None else num_threads
        self.collate_fn, self.batch_transform = collate_fn, batch_transform
        self.device = None if device is None else torch.device(device)
        on_cuda = self.device is not None and self.device.type == "cuda"
        self.pin_memory = on_cuda if pin_memory is None else pin_memory
        self._ranks = _checked_ranks(rank, world_size)
        self.prefetch_factor, self.release = prefetch_factor, release
        self.epoch = 0
        self._position = 0  # in the epoch: behind the last batch that was yielded
        self._start = 0  # where the next loop begins
        self._check()
        self.images = {} if images is None else self._image_batches(images)

    def _image_batches(self, images: Any) -> dict[str, ImageBatch]:
        if not isinstance(self.dataset, MemoryMappedDataset) or self.collate_fn or not self.dataset.is_plain:
            raise ValueError("images: expected a MemoryMappedDataset without transforms, and no collate_fn")
        pictures = {field.name: field.kind for field in self.dataset.fields if isinstance(field.kind, Image)}
        if not isinstance(images, Mapping):
            images = dict.fromkeys(pictures, images)
        found = {}
        for name, operations in images.items():
            if name not in pictures:
                known = printable(", ".join(pictures)) or "none"
                raise ValueError(f"images: '{printable(name)}' is no field of pictures; there are: {known}")
            mode = pictures[name].mode
            is_batch = isinstance(operations, ImageBatch)
            found[name] = operations if is_batch else ImageBatch(operations, mode="L" if mode == "L" else "RGB")
        if not found:
            raise ValueError("images: this dataset has no field of pictures")
        return found

    def _check(self) -> None:
        for name, least in (("batch_size", 1), ("num_threads", 0), ("prefetch_factor", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}: expected an int of at least {least}")
        if self.sampler is not None and (self.shuffle or self.batch_sampler is not None):
            raise ValueError("sampler: not together with shuffle or batch_sampler, which decide the order, too")
        if self.batch_sampler is not None and (self.batch_size != 1 or self.shuffle or self.drop_last):
            raise ValueError("batch_sampler: not together with batch_size, shuffle or drop_last, which it decides")
        if self.pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True: expected a CUDA device, and there is none")
        if not hasattr(self.dataset, "__getitem__") or not hasattr(self.dataset, "__len__"):
            raise TypeError(f"dataset: expected __getitem__ and __len__, got {type(self.dataset).__name__}")

    # Epochs

    def __len__(self) -> int:
        """Return how many batches a whole epoch has on this rank."""
        return len(self._schedule())

    def __iter__(self) -> Iterator[Any]:
        if self._taken():
            self.epoch += 1
        start, self._start = self._start, 0
        self._position = start
        with closing(self._planned(start)) as planned:
            batches = self._read(planned, self.epoch)
            for position, batch in batches if self.device is None else to_device(batches, self.device):
                self._position = position
                yield batch
        self.epoch, self._position = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next loop runs. A position loaded for another epoch is forgotten."""
        if epoch != self.epoch or self._taken():
            self.epoch, self._start, self._position = epoch, 0, 0

    def _taken(self) -> bool:
        """Return whether the last loop took every batch, but did not ask for one more, as in zip(range(n), loader)."""
        return self._position > 0 and not self._start and self._schedule().ended(self._position)

    def state_dict(self) -> dict[str, Any]:
        """Return where this loader is: behind the last batch that its loop has been given.

        It is the same on all ranks, and does not depend on the number of threads. With `shuffle`, without a sampler and
        with `BlockShuffleSampler` it may be loaded by any number of ranks, with any batch size; with another sampler, by
        as many ranks as before.
        """
        return {
            "epoch": self.epoch,
            "position": self._position,
            "unit": "samples" if self.batch_sampler is None else "batches",
            "samples": len(self.dataset),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "order": self._order(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was: the next loop yields the batch behind its last one.

        Costs nothing where the order is known by position; a `sampler` or `batch_sampler` is run up to there.
        Raises ValueError if the state is of another dataset or order.
        """
        own = self.state_dict()
        for key in own:
            if key not in state:
                raise ValueError(f"no '{key}' in this state; expected what Loader.state_dict() returned")
            if key not in ("epoch", "position") and state[key] != own[key]:
                raise ValueError(f"this state is of a loader with {key}={state[key]!r}, this one has {own[key]!r}")
        self.epoch = state["epoch"]
        self._position = self._start = state["position"]

    @property
    def rank(self) -> int:
        """Which of the ranks this is, from 0."""
        return self._place()[0]

    @property
    def world_size(self) -> int:
        """How many ranks share an epoch."""
        return self._place()[1]

    def _place(self) -> tuple[int, int]:
        return this_rank() if self._ranks is None else self._ranks

    def _order(self) -> dict[str, Any]:
        """Return what a sampler's order, and so a position in it, depends on, as far as that is known."""
        if hasattr(self.sampler, "order"):
            state = self.sampler.state_dict()
            return {"seed": list(state["seed"]), "block_size": state["block_size"], "window": state["window"]}
        batches = self.batch_sampler
        sampler = self.sampler if batches is None else getattr(batches, "sampler", batches)
        return {} if sampler is None else {"world_size": getattr(sampler, "num_replicas", self.world_size)}

    def _planned(self, start: int) -> Generator[Planned, None, None]:
        """Yield what is to be read from `start` on, and have its shards downloaded ahead, if they are in object storage."""
        planned = self._schedule().batches(start)
        if isinstance(self.dataset, MemoryMappedDataset):
            in_flight = self.num_threads * self.prefetch_factor + 1
            planned = self.dataset.looking_ahead(planned, attrgetter("indices"), in_flight=in_flight)
        yield from planned

    def _schedule(self) -> Schedule:
        ranks = self.rank, self.world_size
        if self.batch_sampler is not None:
            _set_epoch(self.batch_sampler, self.epoch)
            return BatchSamplerSchedule(self.batch_sampler, *ranks)
        if self.sampler is not None and not hasattr(self.sampler, "order"):
            _set_epoch(self.sampler, self.epoch)
            return SamplerSchedule(self.sampler, self.batch_size, self.drop_last, *ranks)
        order: Sequence[int] = range(len(self.dataset))
        if self.sampler is not None:
            order = self.sampler.order(self.epoch)
        elif self.shuffle:
            order = Permutation(len(self.dataset), (self.seed, self.epoch))
        return OrderSchedule(order, self.batch_size, self.drop_last, *ranks)

    # Reading

    def _read(self, planned: Iterator[Planned], epoch: int) -> Iterator[tuple[int, Any]]:
        """Yield (position behind it, batch), in order, with threads that read the next ones meanwhile."""
        if not self.num_threads:
            for plan in planned:
                self._expect(plan)
                yield plan.position, self._fetch(plan, epoch)
            return
        pool = ThreadPoolExecutor(self.num_threads, "mmds-loader")
        pending: deque[tuple[int, Future[Any]]] = deque()
        end = weakref.finalize(pending, pool.shutdown, cancel_futures=True)  # at exit, before modules lose their names

        def result() -> tuple[int, Any]:
            position, future = pending.popleft()
            return position, future.result()

        try:
            for plan in planned:
                self._expect(plan)
                pending.append((plan.position, pool.submit(self._fetch, plan, epoch)))
                if len(pending) > self.num_threads * self.prefetch_factor:
                    yield result()
            while pending:
                yield result()
        finally:
            end()

    def _expect(self, plan: Planned) -> None:
        """Ask the kernel for what will be read, if the disk is being read from."""
        if isinstance(self.dataset, MemoryMappedDataset):
            self.dataset.expect(plan.indices)

    def _fetch(self, plan: Planned, epoch: int) -> Any:
        try:
            batch = self._collated(plan, epoch)
            if self.release and isinstance(self.dataset, MemoryMappedDataset):
                self.dataset.release(plan.indices)
            if self.batch_transform is not None:
                batch = self.batch_transform(batch)
        except Exception as error:
            indices = np.asarray(plan.indices).tolist()
            shown = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
            error.add_note(f"in the batch of samples {shown} (epoch {epoch})")
            raise
        return pinned(batch) if self.pin_memory else batch  # type: ignore[no-untyped-call]

    def _collated(self, plan: Planned, epoch: int) -> Any:
        dataset = self.dataset
        if isinstance(dataset, MemoryMappedDataset) and self.collate_fn is None and dataset.is_plain:
            return dataset.collate(plan.indices, self._makers(plan, epoch))
        if hasattr(dataset, "__getitems__"):
            samples = dataset.__getitems__(np.asarray(plan.indices).tolist())
        else:
            samples = [dataset[index] for index in plan.indices]
        return (self.collate_fn or default_collate)(samples)

    def _makers(self, plan: Planned, epoch: int) -> dict[str, Callable[[list[bytes]], torch.Tensor]]:
        """Return the functions that make the batch's pictures, with a seed for each of them."""
        if not self.images:
            return {}
        base = np.random.SeedSequence((self.seed % 2**64, epoch)).generate_state(1, np.uint64)
        return {name: partial(self._make, name, plan, plan.numbers + base) for name in self.images}

    def _make(self, name: str, plan: Planned, seeds: NdArray, files: list[bytes]) -> torch.Tensor:
        try:
            return self.images[name](files, seeds)
        except PictureError as error:
            index = np.asarray(plan.indices).item(error.position)
            where = f"{printable(self.dataset.reader.store.path)}: sample {index}, field '{printable(name)}'"
            raise FormatError(f"{where}: {error.reason}") from error


def _checked_ranks(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank!r}, world_size={world_size!r}: give both, or none of them")
    if rank is None or world_size is None:
        return None
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank!r}, world_size={world_size!r}: expected 0 <= rank < world_size")
    return rank, world_size


def _set_epoch(sampler: Any, epoch: int) -> None:
    for one in (sampler, getattr(sampler, "sampler", None)):
        if one is not None and hasattr(one, "set_epoch"):
            one.set_epoch(epoch)
