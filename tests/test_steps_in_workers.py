"""Functions of samples in worker processes: what travels, what waits, and where processes cannot be started."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import mmds
from mmds.errors import OptionError, SourceError
from mmds.ordered import in_order
from mmds.work import Steps, Work
from tests import steps
from tests.test_steps import convert

ROOT = Path(__file__).parent.parent


def test_what_cannot_leave_a_worker_fails_like_what_cannot_be_written(tmp_path: Path) -> None:
    for workers, message in ((1, "got function"), (2, "cannot be sent from a worker process: .*lambda")):
        path = tmp_path / f"{workers}.mmds"
        result = mmds.convert(steps.Slow(9), path, map=steps.lambda_at_3, num_workers=workers, on_error="skip")
        assert [each["n"] for each in mmds.open(path)] == [0, 1, 2, 4, 5, 6, 7, 8]
        assert [name for name, _ in result.errors] == ["sample 3"]
        with pytest.raises(SourceError, match=message):
            mmds.convert(steps.Slow(9), tmp_path / "no.mmds", map=steps.lambda_at_3, num_workers=workers)
    with pytest.raises(OptionError, match="a sample of the source cannot be sent to worker processes"):
        mmds.convert([{"n": lambda: 1}] * 9, tmp_path / "no.mmds", filter=steps.even, num_workers=2)


def test_values_of_every_kind_travel(tmp_path: Path) -> None:
    for workers in (1, 2):
        convert(steps.Slow(9), tmp_path / f"{workers}.mmds", map=steps.values_of_many_kinds, num_workers=workers)
    assert (tmp_path / "1.mmds").read_bytes() == (tmp_path / "2.mmds").read_bytes()
    last = mmds.open(tmp_path / "2.mmds")[8]
    assert last["view"] == b"abc" * 8 and last["bf16"].tolist() == [0x4100] * 3 and last["scalar"] == 8
    assert last["picture"].startswith(b"\x89PNG") and last["flag"] is False


def test_small_samples_of_a_worker_that_is_ahead_wait_as_well(tmp_path: Path) -> None:
    """While one worker is at item 0, the other one has samples without end; it has to stop, or they would fill the memory."""
    count, stop = tmp_path / "count", tmp_path / "stop"
    count.touch()
    sizes = [-1, 0]

    def watch() -> None:
        while (sizes[-1] == 0 or sizes[-1] != sizes[-2]) and len(sizes) < 20:
            time.sleep(0.7)
            sizes.append(count.stat().st_size)
        stop.touch()

    thread = threading.Thread(target=watch)
    thread.start()
    work = Work(steps.number_of, steps=Steps(map=steps.Flood(count, stop)))
    with closing(in_order(work, ((n,) for n in range(9)), num_workers=2, processes=True)) as results:
        assert next(results)[0] == 0
    thread.join()
    assert sizes[-1] == sizes[-2] > 0


def test_a_worker_never_hears_ctrl_c() -> None:
    """Not even the first one, while it starts: its parent ends it, and a traceback from it would tell nothing."""
    code = (
        "from pathlib import Path; from mmds.work import Work; from mmds.workers import Workers\n"
        "from tests.steps import number_of\n"
        "workers = Workers(Work(number_of), 2)\n"
        "for each in workers._workers:\n"
        "    status = Path(f'/proc/{each.process.pid}/status').read_text()\n"
        "    print(int(status.split('SigBlk:')[1].split()[0], 16) >> 1 & 1)\n"
        "print(int(Path('/proc/self/status').read_text().split('SigBlk:')[1].split()[0], 16) >> 1 & 1)\n"
        "workers.close()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["1", "1", "0"], run.stderr


def test_a_daemon_is_told_what_to_do(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, mmds; from tests.steps import Slow, double\n"
        "multiprocessing.current_process()._config['daemon'] = True\n"
        f"mmds.convert(Slow(3), {str(tmp_path / 'out.mmds')!r}, map=double, num_workers=2)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "OptionError: a daemon process, such as a worker of a DataLoader" in run.stderr.splitlines()[-1]


def test_a_script_without_a_main_guard_ends_with_a_word(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import mmds; from tests.steps import Slow, double\nmmds.convert(Slow(9), 'o.mmds', map=double, num_workers=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert run.returncode == 1 and "call convert() under if __name__ == '__main__':" in run.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
