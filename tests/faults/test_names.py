"""Names that would forge or disturb what a person sees: every command over datasets in which everything is called so.

Each command runs in a pseudo-terminal, where it draws tables and progress bars, and none of the sequences in these names may
arrive there; and with --json in a pipe, where what it writes has to be JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mmds
from mmds.cli import main
from tests.conftest import Cases
from tests.samples import jpeg

# Clear the screen, set the title, go up and write over a line, end the line, reverse what follows; C1 control; markup.
EVIL = "\x1b[2J\x1b]0;title\x07\x1b[9;9H\rFORGED\n\u202e\x9b31m\x7f<script>[red]\u2028"
FILE = EVIL.replace("/", "")
RAW = ("\x1b[2J", "\x1b]0", "\x07", "\x1b[9;9H", "\rFORGED", "\u202e", "\x9b", "\x7f", "\u2028", "\x85")
ROOT = Path(__file__).parents[2]


# Forks for each command, with everything imported: starting the interpreter anew would take most of the time.
IN_TERMINALS = """
import json, os, pty, sys
import mmds.cli, mmds.listing, mmds.memorycommand, mmds.pipeline, mmds.splitting, mmds.terminal, PIL.Image, h5py

for arguments in json.load(sys.stdin):
    pid, fd = pty.fork()
    if pid == 0:
        sys.argv = ["mmds", *arguments]
        mmds.cli.main()
    output = b""
    try:
        while data := os.read(fd, 65536):
            output += data
    except OSError:  # how a pseudo-terminal says that the other side has closed it
        pass
    os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([code, output.decode("utf-8", "backslashreplace")]), flush=True)
"""


def in_terminals(each: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """Run commands in pseudo-terminals; return the exit code of each, and all that it wrote there."""
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    given = json.dumps([[str(argument) for argument in arguments] for arguments in each])
    command = [sys.executable, "-c", IN_TERMINALS]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def forged(output: str) -> list[str]:
    """Return what of the hostile sequences is in the output as it is, and lines that a name has begun."""
    plain = output.replace("\r\n", "\n")
    return [raw for raw in RAW if raw in plain] + [line for line in plain.split("\n") if line.startswith("FORGED")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, itself of such a name, with a dataset in several stores, and sources; all names are hostile."""
    place = tmp_path_factory.mktemp("names") / FILE
    place.mkdir()
    fields = {
        f"{EVIL}label": mmds.Label((f"{EVIL}a", f"{EVIL}b")),
        f"{EVIL}text": mmds.Text(column=True),
        f"{EVIL}image": mmds.Image(),
        f"{EVIL}json": mmds.Json(),
        "__key__": mmds.Text(key=True),
        EVIL: {EVIL: mmds.Scalar("int32", nullable=True)},
    }

    def sample(number: int) -> dict[str, Any]:
        return {
            f"{EVIL}label": number % 2,
            f"{EVIL}text": f"{EVIL}{number}",
            f"{EVIL}image": jpeg(number, (8, 8)),
            f"{EVIL}json": {EVIL: [EVIL, number]},
            "__key__": f"{number}{EVIL}",
            EVIL: {EVIL: None if number % 3 else number},
        }

    with mmds.Writer(place / "a.mmds", fields, metadata={EVIL: EVIL}) as writer:
        writer.extend(map(sample, range(4)))
    mmds.convert(place / "a.mmds", place / "shards.mmds", shard_size=1000)
    with mmds.Writer(place / "bad.mmds", fields, metadata={EVIL: EVIL}) as writer:
        writer.extend(map(sample, range(4)))
    data = bytearray((place / "bad.mmds").read_bytes())
    data[4200] ^= 1
    (place / "bad.mmds").write_bytes(data)
    (place / "cut.mmds").write_bytes(bytes(data[:-10]))
    pictures = place / "pictures"
    for number in range(3):
        folder = pictures / f"{number % 2}{FILE}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}{FILE}.jpg").write_bytes(jpeg(number))
    (folder / f"bad{FILE}.jpg").write_bytes(b"no picture" + EVIL.encode())
    (folder / f"other{FILE}.xyz").write_bytes(b"")
    (folder / f"out{FILE}.jpg").symlink_to("/dev/zero")
    (pictures / f"empty{FILE}").mkdir()
    (place / "rows.jsonl").write_text(
        json.dumps({EVIL: 1, "x": EVIL}) + "\n" + EVIL.replace("\n", "") + "\n", newline=""
    )
    (place / "rows.csv").write_text(f'"{EVIL}",x\n1,"{EVIL}"\n"{EVIL}","2",3\n', newline="")
    arrays: dict[str, Any] = {f"{FILE}x": np.arange(3), f"{FILE}y": np.zeros((3, 2)), f"{FILE}z": np.array("x")}
    np.savez(place / "other.npz", **arrays)
    (place / "values.npy").write_bytes(b"")
    np.save(place / "values.npy", np.arange(4))
    (place / "bad.h5").write_bytes(EVIL.encode())
    return place


def commands(place: Path) -> Iterator[tuple[Any, ...]]:
    """Yield every command, with what it shows and with what it refuses."""
    a, shards, pictures = place / "a.mmds", place / "shards.mmds", place / "pictures"
    out = iter(place / f"{number}{FILE}.mmds" for number in range(100))
    for path in (a, shards, place / "other.npz"):
        yield "info", path
        yield "ls", path
        yield "ls", path, "--limit", 1
        yield "show", path, 0
    yield "ls", a, "--fields", f"{EVIL}text"
    yield "ls", a, "--fields", f"{EVIL}missing"
    yield "show", a, 0, "--field", f"{EVIL}json"
    yield "show", a, 0, "--field", f"{EVIL}missing"
    yield "show", a, 0, "--field", f"{EVIL}.{EVIL}", "-o", place / f"x{FILE}.npy"
    yield "show", a, 9
    yield "show", a, 1, "--field", f"{EVIL}image", "-o", place / f"no{FILE}" / "x.png"
    for path in (a, shards, place / "bad.mmds", place / "cut.mmds", place / "bad.h5", place / f"missing{FILE}"):
        yield "verify", path
        yield "info", path
    yield "convert", "-j1", pictures, next(out)
    yield "convert", "-j1", pictures, next(out), "--on-error", "skip"
    yield "convert", "-j1", pictures, next(out), "--on-error", "quarantine"
    yield "convert", "-j1", pictures, next(out), "-o", f"{EVIL}=1"
    yield "convert", "-j1", pictures, next(out), "--from", EVIL
    yield "convert", pictures, a
    yield "convert", "-j1", place / "rows.jsonl", next(out), "--on-error", "skip"
    yield "convert", "-j1", place / "rows.csv", next(out), "--on-error", "skip"
    yield "convert", "-j1", place / "other.npz", next(out)
    yield "convert", "-j1", a, next(out), "--map", f"{EVIL}:x"
    yield "convert", "-j1", a, next(out), "--fields", EVIL
    yield "select", a, next(out), "--where", "x == '" + EVIL.replace("\n", "") + "'"
    yield "select", a, next(out), "--fields", f"{EVIL}text"
    yield "select", a, next(out), "--fields", f"{EVIL}missing"
    yield "merge", a, a, next(out)
    yield "merge", a, place / "bad.h5", next(out)
    yield "split", a, next(out), "--fractions", f"{FILE}=0.5,b=0.5"
    yield "split", a, next(out), "--fractions", "a=0.5,b=0.5", "--stratify", f"{EVIL}label"
    yield "split", a, next(out), "--fractions", "a=0.5,b=0.5", "--stratify", f"{EVIL}missing"
    yield "export", a, place / f"folder{FILE}"
    yield "export", a, place / f"folder{FILE}", "--fields", f"{EVIL}image"
    yield "export", a, place / f"tar{FILE}.tar"
    yield "export", a, place / f"store{FILE}.h5"
    yield "export", a, place / f"x{FILE}", "--to", EVIL
    yield "add-column", shards, f"{EVIL}new", place / "values.npy"
    yield "add-column", shards, f"{EVIL}text", place / "values.npy"
    yield "add-column", shards, "y", place / "bad.h5"
    yield "memory", "--", sys.executable, "-c", "pass", EVIL
    yield (EVIL,)
    yield "info", a, f"--{EVIL}"


@pytest.mark.fault(34)
def test_34_no_name_reaches_a_terminal_as_it_is(place: Path, cases: Cases) -> None:
    found: dict[str, list[str]] = {}
    count = 0
    shown = 0
    each = list(commands(place))
    for arguments, (code, output) in zip(each, in_terminals(each), strict=True):
        count += 1
        shown += "FORGED" in output
        if forged(output) or "Traceback" in output:
            found[repr(arguments)[:200]] = [*forged(output), str(code), output[-300:]]
    assert not found, json.dumps(found, indent=1)
    assert shown > count / 2  # the names are there, but as text
    cases(count)


@pytest.mark.fault(34)
def test_34_json_is_json(place: Path, cases: Cases) -> None:
    a, pictures, out = place / "a.mmds", place / "pictures", place / f"json{FILE}"
    lines = 0
    for arguments in (
        ("info", a),
        ("ls", a),
        ("show", a, 0),
        ("verify", a),
        ("verify", place / "bad.mmds"),
        ("info", place / "other.npz"),
        ("convert", "-j1", pictures, f"{out}1.mmds", "--on-error", "skip"),
        ("select", a, f"{out}2.mmds"),
        ("merge", a, a, f"{out}3.mmds"),
        ("split", a, f"{out}4.mmds", "--count", 2),
    ):
        done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert done.stdout, (arguments, done.stderr)
        for text in done.stdout.splitlines() if arguments[0] == "ls" else [done.stdout]:
            said = json.loads(text)
            assert "FORGED" in json.dumps(said)
            lines += 1
        assert not set(done.stdout) & set("\x1b\x07\x7f\x9b\u202e\r"), arguments
        assert not forged(done.stderr)
    cases(lines)
