"""How far a conversion into shards has come: a line per shard in ``unfinished.jsonl``, beside the shards.

The first line says what is being converted and how; a conversion that goes on must be the same. Each other line is written,
and made durable, when its shard is: which shard it is, with which sample of the source the next one begins, and what went
wrong meanwhile. The file goes when the manifest is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmds.errors import FormatError, OptionError, printable
from mmds.manifest import Shard, parse_entry
from mmds.publish import storage_errors, sync_folder

NAME = "unfinished.jsonl"


@dataclass(frozen=True)
class Entry:
    """A shard that is done."""

    shard: Shard
    item: int  # of the source: the next shard begins with what this item gives,
    outputs: int  # but for so many samples, which are in this shard or before it
    errors: Sequence[tuple[str, str]] = field(default_factory=list)  # since the last shard: (name, reason)


class Journal:
    """The journal of one conversion. `entries` are those of an earlier run; `conversion` is what that did, or `None`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.entries: list[Entry] = []
        self.conversion: Any = None
        with storage_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(self.path, flags, 0o666)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def begin(self, conversion: Mapping[str, Any]) -> None:
        """Say what is being done; `OptionError` if an earlier run did something else."""
        now = json.loads(json.dumps(conversion))
        if self.conversion is None:
            self._append(now)
            with storage_errors(self.path):
                sync_folder(self.path.parent)
        elif self.conversion != now:
            raise OptionError(
                f"{printable(self.path.parent)} was begun differently: {difference(self.conversion, now)}"
            )

    def add(self, entry: Entry) -> None:
        """Note a shard that is done."""
        self._append(asdict(entry))

    def remove(self) -> None:
        """Remove the file, since the dataset is complete."""
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)  # if it could not even be made
        self.close()

    def close(self) -> None:
        """Let go of the file. Calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # every line was synced when it was written
                os.close(fd)

    def _append(self, line: dict[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")  # ASCII only: names need not be Unicode
        with storage_errors(self.path):
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    def _read(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # reading a FIFO would wait for ever
            raise FormatError(f"{printable(self.path)}: not a regular file, so no journal")
        with storage_errors(self.path), self.path.open("rb") as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the last line may have been cut by a crash
        if len(whole) < len(data):
            with storage_errors(self.path):
                os.ftruncate(self._fd, len(whole))
        lines = whole.splitlines()
        if not lines:
            return
        try:
            self.conversion = json.loads(lines[0])
            for line in lines[1:]:
                found = json.loads(line)
                errors = [(name, reason) for name, reason in found["errors"]]
                shard = parse_entry(found["shard"], "a shard")
                numbers, texts = (found["item"], found["outputs"]), [text for pair in errors for text in pair]
                if any(type(number) is not int or number < 0 for number in numbers):
                    raise ValueError(f"item and outputs are {numbers}")
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError("an error that is no pair of texts")
                self.entries.append(Entry(shard, *numbers, errors))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{printable(self.path)}: damaged ({printable(error)}); start anew with overwrite"
            ) from None


def difference(before: Any, now: Mapping[str, Any]) -> str:
    """Return in words the first thing that differs."""
    if not isinstance(before, dict):
        return f"its journal begins with {printable(repr(before), 200)}"
    name = next(name for name in (*now, *before) if before.get(name) != now.get(name))
    return (
        f"{printable(name)} was {printable(repr(before.get(name)), 500)}, and is {printable(repr(now.get(name)), 500)}. "
        "Resume with the same source and options, or start anew: with overwrite, or another name"
    )
