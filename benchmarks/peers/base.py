"""What an adapter is: a class of about 30 lines that has one library write samples and read them.

An adapter reads with the library's own best path, as its documentation recommends, never through mmds. What it gives owns
its bytes: where a library hands out views, the adapter copies them, so that every byte is read. A batch is one array or
tensor (count, ...), or, of values of different length, a list of them or the pair (all values in a row, offsets).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.suite_workloads import Samples, Workload, collate, decode, each

NdArray = np.ndarray[Any, Any]


class Peer:
    """One library with the samples of one workload. What it cannot do stays None, with the reason in `lacks`."""

    name: ClassVar[str]
    module: ClassVar[str]  # what is imported
    packages: ClassVar[tuple[str, ...]]  # distributions, whose versions are printed
    install: ClassVar[str]  # the command
    how: ClassVar[str]  # one line: how it is used
    lacks: ClassVar[dict[str, str]] = {}  # workload or metric: why there is no figure
    lazy: ClassVar[bool] = (
        True  # whether each worker opens it anew, because an open one does not survive fork or pickle
    )
    start_method: ClassVar[str] = "fork"  # of DataLoader workers
    exact: ClassVar[bool] = True  # whether it keeps the bytes of a JPEG file

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    @classmethod
    def prepare(cls) -> None:
        """Import the library."""
        importlib.import_module(cls.module)

    def write(self, folder: Path, samples: Samples) -> None:
        """Write all samples to an empty folder."""
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        """Open what was written."""
        raise NotImplementedError

    single: Callable[[int], Any] | None = None  # of a row
    batch: Callable[[NdArray], Any] | None = None  # of rows
    loader: Callable[[int, int, int], Iterable[Any] | None] | None = None  # of batch size, threads or workers, seed

    def dataset(self, folder: Path) -> Any:
        """Return a map-style torch Dataset, or None."""
        return None if self.batch is None else Rows(self, folder)

    def loaded(self, sample: Any) -> Any:
        """Return a sample as a loader needs it: JPEG files are decoded."""
        return decode(sample) if self.workload.encoded else sample

    def collated(self, samples: Any) -> Any:
        """Return a batch of loaded samples as tensors."""
        return collate(samples, self.workload)

    @classmethod
    def installed(cls) -> bool:
        """Return whether the library can be imported."""
        try:
            return importlib.util.find_spec(cls.module) is not None
        except ModuleNotFoundError:
            return False


class Rows:
    """The samples of a peer as a map-style Dataset, whose batches are the peer's own."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer: Any = type(peer)(peer.workload)
        self.folder, self.pid = folder, 0
        self.count = rows_of(folder)
        if not peer.lazy:
            self.peer.prepare()
            self.peer.open(folder)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.peer.loaded(self._open().single(i))

    def __getitems__(self, indices: list[int]) -> Any:
        batch = self._open().batch(np.array(indices))
        return list(map(decode, each(batch))) if self.peer.workload.encoded else batch

    def _open(self) -> Any:
        if self.peer.lazy and self.pid != os.getpid():
            self.peer = type(self.peer)(self.peer.workload)
            self.peer.prepare()
            self.peer.open(self.folder)
            self.pid = os.getpid()
        return self.peer

    def __getstate__(self) -> dict[str, Any]:
        if self.peer.lazy:
            return {**self.__dict__, "peer": type(self.peer)(self.peer.workload), "pid": 0}
        return self.__dict__


def rows_of(folder: Path) -> int:
    """Return how many samples there are, which the suite notes beside what a library writes."""
    return int(folder.with_suffix(".count").read_text())
