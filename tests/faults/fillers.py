"""Processes that fill one `SharedDataset` at once, and are killed at any moment; nobody ever sees half a sample.

``python -m tests.faults.fillers KILLS SEED``. The processes are forks of a small one, each ended after a few milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from mmds import shareddataset
from mmds.shareddataset import SharedDataset

COUNT = 60_000  # more than are filled between two kills, so that most hit somebody who writes
TOGETHER = 4
NEW_AFTER = 80  # kills: then there is something to fill again


class Texts:
    """Samples of up to 1.2 KB, each of which says its number throughout."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> bytes:
        return b"%05d " % index * (1 + index * 7 % 200)


def read(shared: SharedDataset, chosen: random.Random, count: int) -> None:
    """Read so many samples, which are right."""
    for _ in range(count):
        index = chosen.randrange(COUNT)
        assert shared[index] == Texts()[index], f"sample {index} is wrong"


def filler(shared: SharedDataset, seed: int) -> int:
    """Start a process that reads, and so fills, until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        while True:
            read(shared, random.Random(seed), 10**6)
    except BaseException:  # noqa: BLE001 (shown)
        traceback.print_exc()
    finally:
        os._exit(1)


def main(kills: str, seed: str) -> None:
    """Kill so many processes."""
    chosen = random.Random(int(seed))
    killed = filled = 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mmds-test-", dir=memory if memory.is_dir() else None) as folder:
        shareddataset.MEMORY = Path(folder)  # where nobody else removes what is left
        shared = SharedDataset(Texts(), "fillers")
        while killed < int(kills):
            read(shared, chosen, 1)  # open here: it outlives them
            pids = [filler(shared, chosen.randrange(2**32)) for _ in range(TOGETHER)]
            for pid in pids:
                time.sleep(chosen.expovariate(1000))
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            killed += TOGETHER
            read(shared, chosen, 20)
            if killed % NEW_AFTER == 0:
                filled += shared.filled
                read(shared, chosen, 5000)
                shared.close()
                assert not any(Path(folder).iterdir()), "the memory is not freed"
    assert 0 < filled < killed // NEW_AFTER * COUNT, "they were not killed while they filled"
    print(json.dumps({"cases": killed, "filled": filled}))


if __name__ == "__main__":
    main(*sys.argv[1:])
