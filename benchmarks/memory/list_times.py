"""What holding annotations costs in time: to pack the list, and to read one sample. All ways take turns in one process."""

from __future__ import annotations

import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import mmds
from benchmarks.memory.list_holders import DeepCopied, FlatNumpy, FlatTorch, Holder, Pickled, coco_like
from benchmarks.rounds import medians

READS = 2000  # samples that a turn reads


def times(samples: int, rounds: int, file: Path) -> dict[str, dict[str, float]]:
    """Return seconds: to "pack" the whole list, and to "read" one sample at random; `file` is what `write_file` wrote.

    The yardsticks are ``pickle.dumps(list)``, and "pickled" reads: ``pickle.loads`` of the bytes of one sample.
    """
    listed = list(coco_like(samples))
    packers = {"pickle": pickle.dumps, "numpy": FlatNumpy, "share": mmds.share}
    pack = medians({name: partial(_pack, packer, listed) for name, packer in packers.items()}, rounds, warm_up=1)
    held: dict[str, Holder] = {
        "deepcopy": DeepCopied(listed),
        "pickled": Pickled(listed),
        "numpy": FlatNumpy(listed),
        "torch": FlatTorch(listed),
        "share": mmds.share(listed),
        "mmds": mmds.MemoryMappedDataset(file, format="numpy"),
    }
    read = medians({name: partial(_read, holder) for name, holder in held.items()}, 3 * rounds)
    return {"pack": pack, "read": {name: seconds / READS for name, seconds in read.items()}}


def _pack(packer: Any, samples: Any, _: int) -> None:
    packer(samples)


def _read(holder: Holder, number: int) -> None:
    for index in random.Random(number).choices(range(len(holder)), k=READS):
        holder[index]
