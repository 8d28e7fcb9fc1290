"""The `mmds` command: what each subcommand prints, its JSON, its exit codes, and that hostile names are escaped."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import mmds
from mmds.cli import main
from tests.samples import jpeg, write_every_kind, write_fixed

ROOT = Path(__file__).parent.parent


def run(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process, with output to a pipe."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def run_in_terminal(*arguments: object, columns: int = 100) -> str:
    """Run a command in a pseudo-terminal and return what it writes there."""
    pid, fd = pty.fork()
    if pid == 0:
        environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
        os.execve(sys.executable, [sys.executable, "-m", "mmds", *map(str, arguments)], environment)
    output = b""
    try:
        while data := os.read(fd, 65536):
            output += data
    except OSError:  # how a pseudo-terminal says that the other side has closed it
        pass
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output.decode()
    return output.decode()


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_kind(tmp_path_factory.mktemp("every") / "kind.mmds")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(["cat", "cat", "dog"]):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path / "pictures"


def test_convert_writes_a_dataset_and_says_so(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mmds"
    assert run("convert", pictures, out).stdout.startswith(f"{out}: 3 samples, ")
    assert [sample["image"] for sample in mmds.open(out)] == [jpeg(number) for number in range(3)]
    assert "exists already; pass overwrite=True" in run("convert", pictures, out, code=1).stderr
    (pictures / "dog" / "bad.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("hello")
    assert "bad.jpg" in run("convert", pictures, out, "--overwrite", code=1).stderr
    assert len(mmds.open(out)) == 3
    result = run(
        "convert", pictures, out, "--overwrite", "--on-error", "quarantine", "--resize", 16, "--limit", 4, "-j", 1
    )
    assert "left out 1 bad samples" in result.stderr and "bad.jpg" in result.stderr and "notes.txt" in result.stderr
    assert out.with_name("out.mmds.quarantine.jsonl").exists()
    shown = json.loads(run("convert", pictures, out, "--overwrite", "--on-error", "skip", "--json").stdout)
    assert shown["outputs"] == [{"path": str(out), "samples": 3}] and len(shown["errors"]) == 1


def test_info(every_kind: Path) -> None:
    text = run("info", every_kind).stdout
    assert (
        "40 samples" in text and "image\timage\tRGB\tpayload" in text and "bf16\tarray\tbfloat16 (4,)\tindex\t8" in text
    )
    assert re.search(r"cat +14 +█{40}\n +dog +13 +█{37}\n +owl +13", text) and "made: by a test" in text
    summary = json.loads(run("info", every_kind, "--json").stdout)
    assert summary["samples"] == 40 and summary["metadata"] == {"made": "by a test"}
    assert summary["file_bytes"] == every_kind.stat().st_size == 4096 + summary["data_bytes"] + summary["index_bytes"]
    assert next(f for f in summary["fields"] if f["name"] == "label")["classes"] == {"cat": 14, "dog": 13, "owl": 13}


def test_info_says_what_of_a_foreign_store_is_no_field(tmp_path: Path) -> None:
    names = {"x": np.zeros((4, 2)), "y": np.arange(4), "mean\x1b[2J": np.zeros(3), "version": np.array(1)}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in names.items():
            file[name] = array
        file["table"] = np.zeros(4, [("\u202e", "i4")])
    lines = run("info", tmp_path / "a.h5").stdout.splitlines()
    assert r"left out mean\x1b[2J: its first dimension is 3, not 4" in lines
    assert "left out version: it has no sample axis" in lines
    (table,) = (line for line in lines if line.startswith("left out table: "))
    assert r"\u202e" in table
    found = json.loads(run("info", tmp_path / "a.h5", "--json").stdout)["left_out"]
    assert found["mean\x1b[2J"] == "its first dimension is 3, not 4" and {*found} == {"mean\x1b[2J", "table", "version"}
    run("convert", tmp_path / "a.h5", tmp_path / "b.h5")
    assert "left out" not in run("info", tmp_path / "b.h5").stdout


def test_ls(every_kind: Path) -> None:
    lines = run("ls", every_kind, "--limit", 2, "--fields", "count,label,nested.1.key,maybe").stdout.splitlines()
    assert lines == ["0\t0\tcat\tkey/0\tNone", "1\t1\tdog\tkey/1\t1"]
    rows = [json.loads(line) for line in run("ls", every_kind, "--json", "--limit", 0).stdout.splitlines()]
    assert len(rows) == 40 and rows[5]["label"] == "owl" and "image" not in rows[5]
    assert json.loads(run("ls", every_kind, "--start", -1, "--json").stdout)["sample"] == 39
    assert "no field 'nope'" in run("ls", every_kind, "--fields", "nope", code=1).stderr


def test_show(every_kind: Path, tmp_path: Path) -> None:
    text = run("show", every_kind, -1).stdout
    assert "image\timage\tJPEG 40 x 32 RGB, " in text and "label\tlabel\t0 (cat)" in text
    assert "array\tarray\tfloat32 (3, 100), 39 to 39, mean 39" in text
    sample = json.loads(run("show", every_kind, 4, "--json").stdout)
    assert sample["json"] == {"list": [4, None, "é"], "x": 0.5} and sample["array"] == "float32 (3, 100)"
    run("show", every_kind, 3, "-o", tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == jpeg(3)
    run("show", every_kind, 3, "-o", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.size == (40, 32)
    run("show", every_kind, 3, "--field", "array", "-o", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").tolist() == np.full((3, 100), 3.0).tolist()
    assert "index 40 is out of range for 40 samples" in run("show", every_kind, 40, code=1).stderr
    fixed = write_fixed(tmp_path / "fixed.mmds")
    run("show", fixed, 9, "-o", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.getpixel((0, 0)) == (9, 9, 9)


def test_verify(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds")
    assert run("verify", path).stdout.startswith("undamaged: 64 samples, ")
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    result = run("verify", path, code=1)
    assert (
        "block 0 (bytes 0 to " in result.stderr
        and "field image" in result.stderr
        and "damaged: 3 findings" in result.stderr
    )
    assert json.loads(run("verify", path, "--json", code=1).stdout)["damages"][0]["fields"] == ["image"]


@pytest.mark.parametrize("command", ["info", "ls", "verify"])
def test_errors_are_one_line(tmp_path: Path, command: str) -> None:
    missing = run(command, tmp_path / "missing.mmds", code=1)
    assert "No such file or directory" in missing.stderr and len(missing.stderr.splitlines()) == 1
    (tmp_path / "x.mmds").write_bytes(b"PK\3\4" + bytes(9000))
    assert "not an mmds file: it begins with 50 4b 03 04" in run(command, tmp_path / "x.mmds", code=1).stderr


@pytest.mark.fault(34)
def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.mmds"
    with mmds.Writer(
        path, {"k\x1b]0;x\x07": mmds.Label(("<script>\u202e", "a\nb")), "t": mmds.Text(column=True)}
    ) as writer:
        writer.write({"k\x1b]0;x\x07": 0, "t": "\x1b[31mred\r\n"})
    for arguments in (["info", path], ["ls", path], ["show", path, 0], ["show", path, 7], ["verify", path]):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert not set(result.stdout + result.stderr) & set("\x1b\x07\r\u202e"), arguments
    assert "\\x1b[31mred\\r\\n" in run("ls", path).stdout


def test_a_terminal_gets_tables_pictures_and_progress(every_kind: Path, pictures: Path, tmp_path: Path) -> None:
    table = run_in_terminal("ls", every_kind, "--limit", 3, "--fields", "count,label")
    assert "sample" in table and "label" in table and "--start 3 shows more" in table
    picture = run_in_terminal("show", every_kind, 30)
    assert picture.count("▀") == 40 * 16  # 40 x 32 pixels, two per character
    assert "JPEG 40 x 32 RGB" in picture
    assert "converting" in run_in_terminal("convert", pictures, tmp_path / "out.mmds")
    assert "converting" not in run_in_terminal("convert", pictures, tmp_path / "quiet.mmds", "--no-progress")


def test_a_pipe_gets_no_progress(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmds", "convert", str(pictures), str(tmp_path / "out.mmds")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_every_command_has_help_and_a_line_in_the_docs() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in main.commands.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option)), name
        assert f"mmds {name}" in readme, f"README.md does not mention mmds {name}"
    assert "Memory-mapped datasets" in run("--help").stdout


def test_wrong_values_of_options_are_one_line(pictures: Path, tmp_path: Path) -> None:
    for options in (["--encode", "jpeg:101"], ["--resize", 70000]):
        result = run("convert", pictures, tmp_path / "out.mmds", *options, code=2)
        assert "expected" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.mmds").exists()


def test_a_null_has_no_file(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"image": mmds.Image(nullable=True)}) as writer:
        writer.write({"image": None})
    for name in ("x.bin", "x.png"):
        assert "is null" in run("show", tmp_path / "a.mmds", 0, "-o", tmp_path / name, code=1).stderr


def test_a_closed_pipe_ends_a_listing_quietly(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds") as writer:
        writer.write_batch({"x": np.arange(50_000)})
    listing = f"{sys.executable} -m mmds ls {tmp_path}/a.mmds --limit 0 | head -1"
    done = subprocess.run(["sh", "-c", listing], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "0\t0\n" and done.stderr == ""
