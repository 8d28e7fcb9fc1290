"""`mmds memory` and `mmds.memory.watch`: which memory grew, whose it is, and what of a mapped file is there."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mmds
import mmds.memory
import mmds.smaps as smaps
from mmds.cli import main
from mmds.errors import MissingDependencyError
from mmds.memory import Snapshot, Watch, look, watch
from mmds.memoryreport import COLUMNS, csv_rows, describe, live_view, summarize, verdict
from mmds.smaps import MappedDataset, ProcessMemory
from tests.test_cli import run, run_in_terminal

ROOT = Path(__file__).parent.parent
MIB = 2**20
SIZE = 64 * MIB
NEAR = 4 * MIB  # what an interpreter may take or give back meanwhile

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc/PID/smaps")


class Child:
    """A Python process that runs lines one after the other, each when it is told to."""

    def __init__(self) -> None:
        program = "import sys\nfor line in sys.stdin:\n    exec(line, globals())\n    print('done', flush=True)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self.process.pid
        self.run("import os, mmap, numpy, subprocess, mmds.mapped")

    def run(self, line: str) -> None:
        """Run a line, and return when it is done."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    try:
        yield child
    finally:
        child.end()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .mmds file of 64 MiB that is on disk: the kernel can drop its pages."""
    path = tmp_path_factory.mktemp("memory") / "data.mmds"
    with mmds.Writer(path) as writer:
        for number in range(16):
            writer.write_batch({"x": np.full((1, 4 * MIB), number, "uint8")})
    return path


READ_ALL = (
    "file = open({path!r}, 'rb'); m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); numpy.frombuffer(m, 'u1').sum()"
)


def own(snapshot: Snapshot, pid: int) -> ProcessMemory:
    (found,) = (process for process in snapshot.processes if process.pid == pid)
    return found


def of_file(snapshot: Snapshot, path: Path) -> MappedDataset:
    (found,) = (dataset for dataset in snapshot.datasets if dataset.path == str(path))
    return found


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_private_memory_is_called_private(child: Child) -> None:
    with watch(child.pid, interval=60) as watched:
        child.run(f"kept = bytearray({SIZE}); kept[::4096] = bytes(len(kept[::4096])).replace(b'\\0', b'x')")
    first, last = (own(snapshot, child.pid) for snapshot in (watched.snapshots[0], watched.snapshots[-1]))
    for figure in ("private", "uss", "rss", "pss", "pss_private"):
        assert abs(getattr(last, figure) - getattr(first, figure) - SIZE) < NEAR, figure
    assert watched.peak is watched.snapshots[-1]
    summary = watched.summary()
    assert "Private memory grew by 6" in summary and "copies, new objects or a leak" in summary
    assert f"in 1 of 1 process (python ({child.pid})" in summary.replace(last.name, "python")
    assert "Page cache grew" not in summary


def test_pages_of_a_mapped_file_are_called_page_cache(child: Child, dataset: Path) -> None:
    with watch(child.pid, interval=60) as watched:
        child.run(READ_ALL.format(path=str(dataset)))
    first, last = (own(snapshot, child.pid) for snapshot in (watched.snapshots[0], watched.snapshots[-1]))
    assert last.uss - first.uss > SIZE - NEAR, "the only process that has a page counts it in its USS"
    assert abs(last.private - first.private) < NEAR
    assert abs(last.pss_cache - first.pss_cache - SIZE) < NEAR and abs(last.shared - first.shared - SIZE) < NEAR
    summary = watched.summary()
    assert "Page cache grew by 6" in summary and "not a leak" in summary
    assert "Private memory did not grow" in summary and "RSS grew by" in summary
    there = of_file(watched.snapshots[-1], dataset)
    assert there.size == dataset.stat().st_size and there.resident is not None
    assert SIZE - MIB < there.resident <= there.size  # the kernel may take a few at any time
    assert f"{dataset}: 64.0 MiB, 6" in summary and " %) of it in memory" in summary


def test_evicted_pages_are_not_resident(child: Child, dataset: Path) -> None:
    child.run(f"m = mmds.mapped.map_file({str(dataset)!r}); m[:4096]")
    evict(dataset)
    there = of_file(look(child.pid), dataset)
    assert there.resident is not None
    if there.resident > SIZE // 2:
        pytest.skip("this file system keeps files in memory")
    child.run("numpy.frombuffer(m, 'u1').sum()")
    again = of_file(look(child.pid), dataset)
    assert (
        again.resident is not None and SIZE - MIB < again.resident <= again.size
    )  # the kernel may take a few at any time


def test_residency_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaps, "PIECE", 3 * MIB)
    with (tmp_path / "a").open("w+b") as file:
        assert smaps.resident(file.fileno()) == 0
        file.truncate(10 * MIB + 1)
        assert smaps.resident(file.fileno()) == 0
        file.seek(5 * MIB)
        file.write(bytes(2 * MIB))
        file.flush()
        assert smaps.resident(file.fileno()) == 2 * MIB
        file.seek(0)
        file.write(bytes(10 * MIB + 1))
        file.flush()
        assert smaps.resident(file.fileno()) == 10 * MIB + 1


def test_a_file_that_is_gone_replaced_or_anothers_is_of_unknown_residency(
    child: Child, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new\nline.mmds"
    path.write_bytes(dataset.read_bytes()[: MIB + 1])
    child.run(f"m = mmds.mapped.map_file({str(path)!r})")
    assert of_file(look(child.pid), path) == MappedDataset(str(path), MIB + 1, MIB + 1)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    assert of_file(look(child.pid), path).resident is None, "mincore would say 100 %"
    monkeypatch.undo()
    path.rename(tmp_path / "old.mmds")
    assert of_file(look(child.pid), tmp_path / "old.mmds").resident == MIB + 1
    (tmp_path / "old.mmds").unlink()
    (gone,) = look(child.pid).datasets
    assert gone == MappedDataset(f"{tmp_path}/old.mmds (deleted)", MIB + mmap_page(), None)
    (other,) = smaps.look_at([smaps.Mapping(str(dataset), dataset.stat().st_ino + 1, 4096)])
    assert other == MappedDataset(str(dataset), 4096, None)


def mmap_page() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def test_libraries_and_shared_memory_are_no_datasets_but_memfds_of_mmds_are(child: Child) -> None:
    child.run("a = mmap.mmap(-1, 2**23); a[::4096] = b'x' * len(a[::4096])")
    child.run(
        "fd = os.memfd_create('mmds-shared'); os.ftruncate(fd, 2**22); b = mmap.mmap(fd, 0); b[::4096] = b'x' * 1024"
    )
    child.run("fd = os.memfd_create('other'); os.ftruncate(fd, 2**22); c = mmap.mmap(fd, 0)")
    found = look(child.pid)
    assert found.datasets == (MappedDataset("/memfd:mmds-shared", 2**22, 2**22),)
    process = own(found, child.pid)
    assert process.pss_shared_memory >= 12 * MIB
    assert process.pss == process.pss_private + process.pss_cache + process.pss_shared_memory


SMAPS = b"""\
55d0c0000000-55d0c0400000 rw-p 00000000 00:00 0                          [heap]
Rss:                4096 kB
Pss:                3072 kB
Private_Clean:         0 kB
Private_Dirty:      2048 kB
Anonymous:          4096 kB
SwapPss:             512 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000400000 rw-p 00000000 08:01 42                         /usr/lib/libx.so
Rss:                 100 kB
Pss:                  60 kB
Private_Clean:        10 kB
Private_Dirty:        20 kB
Anonymous:            20 kB
7f0000400000-7f0000800000 r--s 00001000 08:01 43                         /data/a b.mmds
Rss:                 300 kB
Pss:                 200 kB
Private_Clean:       100 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
7f0000800000-7f0000c00000 rw-s 00000000 00:1a 44                         /ram/c.bin
Rss:                  40 kB
Pss:                  40 kB
Private_Clean:         0 kB
Private_Dirty:        40 kB
Anonymous:             0 kB
"""


def test_smaps_by_the_letter() -> None:
    found, mappings = smaps.parse_smaps(7, "x", SMAPS.splitlines(), frozenset({"00:1a"}))
    kib = {name: value // 1024 for name, value in asdict(found).items() if name in smaps.FIGURES}
    assert kib == {
        "rss": 4536,
        "uss": 2218,
        "pss": 3372,
        "shared": 420,
        "private": 2048 + 20,
        "swap": 512,
        "pss_private": 3072 + 12,
        "pss_cache": 48 + 200,
        "pss_shared_memory": 40,
    }
    assert mappings == [
        smaps.Mapping("/data/a b.mmds", 43, 2**22 + 4096),
        smaps.Mapping("/ram/c.bin", 44, 2**22),
    ]


def test_figures_are_those_of_psutil(child: Child) -> None:
    psutil = pytest.importorskip("psutil")
    ours, theirs = own(look(child.pid), child.pid), psutil.Process(child.pid).memory_full_info()
    for figure in ("rss", "uss", "pss", "shared"):
        assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=0.1), figure


def test_children_count_even_if_their_parent_ends_first(child: Child) -> None:
    child.run("p = subprocess.Popen(['sh', '-c', 'sleep 600 & echo $!; read x'], stdin=-1, stdout=-1)")
    child.run("number = int(p.stdout.readline())")
    try:
        with watch(child.pid, interval=60) as watched:
            child.run("p.stdin.close(); p.wait()")
        names = [{process.name for process in snapshot.processes} for snapshot in watched.snapshots]
        assert names[0] - names[-1] == {"sh"} and "sleep" in names[-1]
    finally:
        child.run("os.kill(number, 9); p.stdout.close()")


def test_forked_memory_counts_once_in_the_tree(child: Child) -> None:
    child.run(f"kept = numpy.ones({SIZE}, 'u1')")
    with watch(child.pid, interval=60) as watched:
        child.run("r, w = os.pipe(); pid = os.fork(); pid or (os.close(w), os.read(r, 1), os._exit(0))")
        child.run("")
        forked = look(child.pid)
        child.run("os.close(w); os.waitpid(pid, 0)")
    assert len(forked.processes) == 2 and forked.total("rss") > 2 * SIZE
    assert abs(forked.total("pss_private") - watched.snapshots[0].total("pss_private")) < NEAR
    assert own(forked, child.pid).private < SIZE and "Private memory did not grow" in watched.summary()


def test_this_process_is_the_default_and_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.enumerate()
    with watch(interval=0.001) as watched:
        assert len(threading.enumerate()) == len(before) + 1
    assert threading.enumerate() == before
    assert watched.pid == os.getpid() and len(watched.snapshots) >= 2
    assert [s.seconds for s in watched.snapshots] == sorted(s.seconds for s in watched.snapshots)
    assert watched.peak in watched.snapshots


def test_an_error_in_the_thread_is_raised_at_the_end_and_does_not_hide_another() -> None:
    def fail(snapshot: Snapshot) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), watch(interval=0.001, each=fail) as watched:
        watched.wait()
    with pytest.raises(KeyError), watch(interval=0.001, each=fail) as watched:
        watched.wait()
        raise KeyError


def test_wait_returns_when_the_process_ends() -> None:
    child = Child()
    with watch(child.pid, interval=0.001) as watched:
        child.end()
        watched.wait()
    assert own(watched.snapshots[-1], child.pid).rss > 0, "the last snapshot is of a living process"


def test_snapshots_are_thinned_but_keep_first_peak_and_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmds.memory, "KEPT", 16)
    watched = Watch(interval=60)
    (process,) = (p for p in look().processes if p.pid == os.getpid())
    for number in range(1000):
        snapshot = Snapshot(float(number), (replace(process, pss=10**12 if number == 333 else 0),), ())
        monkeypatch.setattr(watched._tree, "snapshot", lambda seconds, snapshot=snapshot: snapshot)
        watched._take()
    seconds = [snapshot.seconds for snapshot in watched.snapshots]
    assert len(seconds) <= 18 and seconds[0] == 0 and seconds[-1] == 999 and 333 in seconds
    assert watched.peak.seconds == 333 and max(np.diff(seconds)) <= 4 * 1000 / 16


def test_who_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError, match=f"process {gone.pid} has no memory"):
        look(gone.pid)
    gone.wait()
    with pytest.raises(ProcessLookupError, match=f"there is no process {gone.pid}"):
        watch(gone.pid)
    with pytest.raises(ValueError, match="more than 0 seconds, got 0"):
        watch(interval=0)

    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(mmds.memory, "read_process", refuse)
    with pytest.raises(PermissionError, match="another user's"), watch():
        pass
    assert "Not counted: 1 process of another user" in describe(summarize([Snapshot(0.0, (), (), (1,))]))
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "mmds\[memory\]"'):
        watch()


FIGURES = dict.fromkeys(smaps.FIGURES, 100 * MIB) | {"swap": 0, "pss_shared_memory": 0, "private": 10 * MIB}
ONE = ProcessMemory(1, "python", **FIGURES)


def growing(*private: int, swap: int = 0) -> str:
    """Return the verdict on a process whose private memory is so many MiB at one time after the other."""
    processes = [replace(ONE, private=n * MIB, pss_private=n * MIB) for n in private]
    processes[-1] = replace(processes[-1], swap=swap * MIB)
    return "\n".join(verdict(summarize([Snapshot(float(n), (p,), ()) for n, p in enumerate(processes)])))


def test_words() -> None:
    assert growing(10, 10, 10, 10) == "Private memory did not grow."
    assert growing(10, 50, 50, 50).startswith(
        "Private memory grew by 40.0 MiB, in 1 of 1 process (python (1) by 40.0 MiB), none"
    )
    assert "20.0 MiB of it in the second half" in growing(10, 20, 30, 40)
    assert "grew by 40.0 MiB" in growing(10, 50, 50, 10), "it counts what was there meanwhile"
    assert "grew by 30.0 MiB: copies" in growing(10, 10, swap=30)
    shared = [Snapshot(float(n), (replace(ONE, pss_shared_memory=n * SIZE),), ()) for n in range(2)]
    assert "Shared memory grew by 64.0 MiB: batches" in describe(summarize(shared))
    many = [Snapshot(0.0, (ONE,), ()), Snapshot(1.0, tuple(replace(ONE, pid=n) for n in range(1, 9)), ())]
    assert "in 7 of 8 processes (python (2) by 10.0 MiB, " in describe(summarize(many)) and ", and 2 more)" in describe(
        summarize(many)
    )
    assert "Nothing was seen" in describe(summarize([]))


def snapshots(count: int = 3) -> list[Snapshot]:
    named = replace(ONE, name="$_\x1b[2J$\u4e2d,\n")
    files = (MappedDataset("/a\x1b[2J$x$.mmds", SIZE, MIB), MappedDataset("/memfd:mmds-b", MIB, None))
    return [Snapshot(float(n), (named, replace(ONE, pid=n + 2)), files) for n in range(count)]


def test_csv(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        write = csv_rows(file)
        for snapshot in snapshots():
            write(snapshot)
        text = (tmp_path / "a.csv").read_text()
    assert "\x1b" not in text
    rows = list(csv.DictReader(text.splitlines()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 12
    assert rows[0]["kind"] == "process" and rows[0]["private"] == str(10 * MIB) and rows[4]["seconds"] == "1.000"
    assert rows[2] | {"name": ""} == dict.fromkeys(COLUMNS, "") | {
        "seconds": "0.000",
        "kind": "dataset",
        "size": str(SIZE),
        "resident": str(MIB),
    }
    assert rows[3]["resident"] == ""
    with watch(interval=60) as watched:
        pass
    watched.to_csv(tmp_path / "b.csv")
    assert f",process,{os.getpid()}," in (tmp_path / "b.csv").read_text()


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mmds.memoryplot import plot

    data = tmp_path / "a.mmds"
    data.write_bytes(b"as it was")
    seen = [replace(s, datasets=(*s.datasets, MappedDataset(str(data), 9, 9))) for s in snapshots()]
    for number, of in enumerate((seen, seen[:1], [])):
        path = tmp_path / f"{number}.png"
        plot(of, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "a.mmds"]
    assert data.read_bytes() == b"as it was"


def test_a_live_view_shows_all_and_escapes() -> None:
    from rich.console import Console

    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        console.print(live_view(snapshots()[0]))
    text = captured.get()
    assert "all" in text and r"\x1b[2J" in text and "2 %" in text and "?" in text and "\x1b" not in text


# The command


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `mmds memory` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mmds", "memory", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_command_keeps_its_output_and_its_exit_code(tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(7)"
    files = ["--csv", tmp_path / "a.csv", "--png", tmp_path / "a.png"]
    done = command("--interval", 0.05, *files, "--", sys.executable, "-c", program, "--json", "--", code=7)
    assert done.stdout == "['--json', '--'] \n"
    assert (
        done.stderr.startswith("1 process watched for ")
        and "Private memory" in done.stderr
        and "\x1b" not in done.stderr
    )
    with (tmp_path / "a.csv").open() as file:
        assert next(csv.DictReader(file))["kind"] == "process"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    killed = command("--json", "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", code=128 + 9)
    assert json.loads(killed.stderr)["processes"][0]["pid"] > 0 and killed.stdout == ""
    assert "No such file or directory" in command("--", tmp_path / "nothing", code=1).stderr


def test_what_cannot_be_written_fails_before_the_command_runs(tmp_path: Path) -> None:
    for option in ("--csv", "--png"):
        command(option, tmp_path / "no" / "a", "--", "touch", tmp_path / "ran", code=1)
    assert not (tmp_path / "ran").exists()


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "mmds", "memory", *map(str, arguments)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, process_group=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_the_command_and_the_result_follows(tmp_path: Path) -> None:
    program = (
        "import signal, sys\n"
        "def end(*a): print('tidy', flush=True); sys.exit(3)\n"
        "signal.signal(signal.SIGINT, end)\nprint('ready', flush=True)\nwhile True: signal.pause()"
    )
    with started("--interval", 0.05, "--csv", tmp_path / "a.csv", "--", sys.executable, "-c", program) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_for(tmp_path / "a.csv")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert out == "tidy\n" and process.returncode == 3
    assert "1 process watched" in err and "Traceback" not in err


def test_to_be_told_to_end_is_passed_on(tmp_path: Path) -> None:
    with started("--interval", 0.05, "--csv", tmp_path / "a.csv", "--", "sleep", 600) as process:
        wait_for(tmp_path / "a.csv")
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and "1 process watched" in err


def test_a_process_is_watched_until_ctrl_c_or_until_it_ends(child: Child, tmp_path: Path) -> None:
    with started("--interval", 0.05, "--csv", tmp_path / "a.csv", child.pid) as process:
        wait_for(tmp_path / "a.csv")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 0 and err == "" and out.startswith("1 process watched")
    (tmp_path / "a.csv").unlink()
    with started("--interval", 0.05, "--json", "--csv", tmp_path / "a.csv", child.pid) as process:
        wait_for(tmp_path / "a.csv")
        child.end()
        out, err = process.communicate()
    assert process.returncode == 0 and json.loads(out)["processes"][0]["pid"] == child.pid


def wait_for(path: Path) -> None:
    """Return when a CSV has rows of more than one snapshot."""
    pause = threading.Event()
    while not path.exists() or len(path.read_text().splitlines()) < 3:
        pause.wait(0.02)


def test_once(child: Child, dataset: Path) -> None:
    child.run(f"m = mmds.mapped.map_file({str(dataset)!r})")
    lines = run("memory", "--once", child.pid).stdout.splitlines()
    assert lines[0].startswith("\tall\t") and lines[1].startswith(f"{child.pid}\t") and len(lines[1].split("\t")) == 7
    assert lines[2] == "" and lines[3].startswith(f"{dataset}\t64.0 MiB\t")
    found = json.loads(run("memory", child.pid, "--once", "--json").stdout)
    assert found["processes"][0]["pid"] == child.pid and found["datasets"][0]["path"] == str(dataset)
    assert found["total"]["rss"] == found["processes"][0]["rss"]
    assert "private" in run_in_terminal("memory", "--once", child.pid)


def test_live_in_a_terminal() -> None:
    text = run_in_terminal("memory", "--live", "--interval", 0.05, "--", "sleep", 0.2)
    assert "process" in text and "sleep" in text and "1 process watched" in text
    assert run_in_terminal("memory", "--", "sleep", 0.2).startswith("1 process watched"), (
        "the terminal is the command's"
    )


def test_hostile_names_are_escaped(child: Child, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\u202e.mmds"
    path.write_bytes(bytes(4096))
    child.run(f"m = mmds.mapped.map_file({str(path)!r}); open('/proc/self/comm', 'w').write('\\x1b[2J)\\n S 1')")
    for arguments in (["--once"], ["--once", "--json"]):
        text = run("memory", child.pid, *arguments).stdout
        assert not set(text) & set("\x1b\u202e") and "[2J)" in text
    with watch(child.pid, interval=60) as watched:
        child.run(f"kept = numpy.ones({SIZE}, 'u1')")
    watched.to_csv(tmp_path / "a.csv")
    for text in (watched.summary(), (tmp_path / "a.csv").read_text()):
        assert r"\x1b[2J)" in text and not set(text) & set("\x1b\u202e")


def test_usage() -> None:
    def fails(*arguments: object, code: int = 2) -> Result:
        result = run("memory", *arguments, code=code)
        assert len(result.stderr.splitlines()[-1]) < 128 and "Traceback" not in result.stderr
        return result

    wrong: list[list[object]] = [[], [1, "--", "true"], ["--"], ["--once", "--", "true"], ["--once", 1, "--csv", "a"]]
    wrong += [["python", "train.py"], [0], ["--interval", 0, 1], ["--nope", 1], [1, 2]]
    for arguments in wrong:
        assert "Error: " in fails(*arguments).stderr
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert fails(gone.pid, code=1).stderr == f"Error: there is no process {gone.pid}\n"
    assert "[PID] [-- COMMAND...]" in run("memory", "--help").stdout


def test_help_and_import_are_cheap() -> None:
    for code in (
        "import mmds.memory",
        "import mmds.cli\ntry: mmds.cli.main(['memory', '--help'])\nexcept SystemExit: pass",
    ):
        program = f"import sys\n{code}\nassert not {{'psutil', 'matplotlib', 'rich', 'torch'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


def test_runner_in_process_restores_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(main, ["memory", "--", sys.executable, "-c", "raise SystemExit(5)"])
    assert result.exit_code == 5 and "watched" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before
