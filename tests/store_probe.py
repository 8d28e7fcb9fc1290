"""What a store's contract runs in a process of its own, because it may crash, is killed, or must not have a package.

::

    python -m tests.store_probe kill FORMAT PATH
    python -m tests.store_probe without FORMAT PATH
    python -m tests.store_probe scribble PATH
    python -m tests.store_probe damage FORMAT PATH FOLDER SEED CUTS FLIPS
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds.converters.stores import all_stores
from mmds.errors import MissingDependencyError, MmdsError

ROOM = 3 * 2**30  # of address space beyond what is in use: a damaged size must not be allocated


def digest(sample: Any) -> str:
    """Return a hash of all that a sample holds: containers, types, dtypes, shapes, bits."""
    found = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, dict):
            found.update(f"dict {list(node)!r}".encode())
            for value in node.values():
                add(value)
        elif isinstance(node, (list, tuple)):
            found.update(f"{type(node).__name__} {len(node)}".encode())
            for value in node:
                add(value)
        elif isinstance(node, np.ndarray):
            found.update(f"{node.dtype} {node.shape}".encode() + node.tobytes())
        else:
            found.update(f"{type(node).__name__} {node!r}".encode("utf-8", "surrogatepass"))

    add(sample)
    return found.hexdigest()


def digests(batch: Any) -> list[str]:
    """Collate samples to their hashes."""
    return [digest(sample) for sample in batch]


def arrays(node: Any) -> list[np.ndarray[Any, Any]]:
    """Return all arrays in a sample."""
    if isinstance(node, np.ndarray):
        return [node]
    if isinstance(node, dict):
        node = list(node.values())
    return [array for part in node for array in arrays(part)] if isinstance(node, (list, tuple)) else []


def read_all(path: Path) -> None:
    """Read every sample singly and all in one batch."""
    reader = mmds.open(path)
    for sample in reader:
        digest(sample)
    digest(reader[np.arange(len(reader))[::-1]])


def kill(format: str, path: Path) -> None:
    """Be killed while writing."""
    writer = all_stores()[format].writer(path, {"x": mmds.Array("uint8", (1000,)), "t": mmds.Text()})
    for number in range(30):
        writer.write_batch({"x": np.full((100, 1000), number, "u1"), "t": ["text"] * 100})
    os.kill(os.getpid(), signal.SIGKILL)


def without(format: str, path: Path) -> None:
    """Print what reading and writing say where the package is missing."""
    store = all_stores()[format]
    sys.modules[store.package] = None  # type: ignore[assignment]
    for action in (lambda: mmds.open(path), lambda: store.writer):
        try:
            action()
        except MissingDependencyError as error:
            print(error)


def scribble(path: Path) -> None:
    """Write into all arrays that were handed out, as far as they let that happen; reading again must not show it."""
    reader = mmds.open(path)
    rows = np.array([0, 1, 2, 5])
    before = digest(reader[rows])
    for _ in range(2):
        for sample in [*reader[:3], reader[rows]]:
            for array in arrays(sample):
                try:
                    array.setflags(write=True)
                except ValueError:
                    continue
                array.fill(1)
    if digest(reader[rows]) != before or digest(mmds.open(path)[rows]) != before:
        raise SystemExit("what was handed out is the store's own memory")


def damage(format: str, path: Path, folder: Path, seed: int, cuts: int, flips: int) -> None:
    """Cut and flip copies of the store at `path` and read them; print what raises anything but an error of mmds."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    read_all(path)  # so that libraries have taken the address space that they take
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    chance = random.Random(seed)
    for number in range(cuts + flips):
        copy = folder / f"{number}{path.suffix}"
        file = chance.choice(files)
        data = bytearray(file.read_bytes())
        cutting = number < cuts or not data
        place = chance.randrange(len(data)) if data else 0
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
        if cutting:
            del data[place if number else 0 :]
        else:
            data[place] ^= 1 << chance.randrange(8)
        (copy / file.relative_to(path)).write_bytes(data)
        what = f"{format}: {file.relative_to(path.parent)} {'cut' if cutting else 'flipped'} at {place} of {len(data)}"
        print(f"now {what}", flush=True)  # the last one of these tells where a crash was
        try:
            read_all(copy)
        except MmdsError:
            pass
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is the finding)
            print(f"BAD {what}: {type(error).__name__}: {error}\n{traceback.format_exc()}", flush=True)
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


def main(command: str, *arguments: str) -> None:
    """Run the command line."""
    if command == "kill":
        kill(arguments[0], Path(arguments[1]))
    elif command == "without":
        without(arguments[0], Path(arguments[1]))
    elif command == "scribble":
        scribble(Path(arguments[0]))
    else:
        format, path, folder, *numbers = arguments
        damage(format, Path(path), Path(folder), *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
