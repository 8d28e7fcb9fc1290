"""The wheel: only mmds in it, and it works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.samples import jpeg

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "mmds"  # a copy: building writes into the folder
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "tests", "benchmarks", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("mmds-*.whl"))


def test_the_wheel_contains_only_mmds(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmds"}
    assert {"mmds/py.typed", "mmds/converters/imagefolder.py", "mmds/format.py"} <= set(names)
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mmds").glob("*.py")}
    assert ours <= set(names)
    assert not any("test" in name or name.startswith("converters") for name in names)


def test_the_installed_wheel_converts_and_reads_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "0.jpg").write_bytes(jpeg(len(name)))
    check = "import mmds, sys; assert mmds.__file__.startswith(sys.argv.pop(1)), mmds.__file__"
    code = f"{check}; from mmds.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for arguments in (["convert", "pictures", "out.mmds"], ["verify", "out.mmds"]):
        program = [sys.executable, "-c", code, str(site), *arguments]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("undamaged: 2 samples")
