"""One writer, recorded, and the computer that stops after each of its steps: what readers and the next writer find then.

``python -m tests.faults.crashes "a file" STATES SEED`` goes through about so many states.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults.losing import Disk, Key
from tests.faults.recorder import Recording, Sync, record
from tests.faults.writers import WRITERS, Case, listing, spill


class Crashes:
    """The states of one writer."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        before, after = folder / "before", folder / "after"
        before.mkdir()
        case.prepare(before)
        shutil.copytree(before, folder / "warm")
        case.write(folder / "warm")
        shutil.copytree(before, after)
        self.old = case.look(after)
        self.recording = record(case.write, after)
        self.new, self.files = case.look(after), listing(after)
        self.torn: list[str] = []

    def go(self, states: int, seed: int, recording: Recording | None = None) -> tuple[int, int]:
        """Look into about so many states, and return how many there were, and how many of them differed."""
        disk = Disk(recording or self.recording)
        seen: set[tuple[bool, Key]] = set()
        count = 0
        for steps, kept in disk.states(random.Random(seed), max(2, states // len(disk.ends))):
            count += 1
            is_done = steps == len(disk.recording.steps)
            state = (is_done, disk.key(kept))
            if state in seen:
                continue
            seen.add(state)
            folder = self.folder / "state"
            folder.mkdir()
            try:
                disk.build(kept, folder)
                self._check(folder, is_done)
            except Exception as error:  # noqa: BLE001 (counted, and shown)
                self.torn.append(f"after {steps} steps: " + "".join(traceback.format_exception(error))[-1500:])
            shutil.rmtree(folder)
        return count, len(seen)

    def _check(self, folder: Path, is_done: bool) -> None:
        found = self.case.look(folder)
        assert found in (self.old, self.new), f"torn: {found}"
        assert found == self.new or not is_done, "what was published is gone"
        self.case.go_on(folder)
        assert self.case.look(folder) == self.new, "the next one did not end well"
        files = listing(folder)
        assert files == self.files, sorted(files.keys() ^ self.files.keys())


def without_syncs(recording: Recording, *, of_folders: bool) -> Recording:
    """Return what a writer would have done that forgets to sync its files, or its folders."""
    steps = [
        [o for o in step if not (isinstance(o, Sync) and o.node.is_folder == of_folders)] for step in recording.steps
    ]
    return Recording(recording.root, [step for step in steps if step])


def main(name: str, states: str, seed: str, forget: str = "") -> int:
    """Go through the states of one writer, and show what is torn: with `forget`, if it had not synced "files" or "folders"."""
    spill()
    with tempfile.TemporaryDirectory() as folder:
        crashes = Crashes(WRITERS[name], Path(folder))
        forgetful = without_syncs(crashes.recording, of_folders=forget == "folders") if forget else None
        count, differ = crashes.go(int(states), int(seed), forgetful)
    for text in crashes.torn[:3]:
        print(text)
    print(json.dumps({"torn": len(crashes.torn), "states": count, "differ": differ}))
    return 0 if forget else len(crashes.torn)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
