"""What importing costs: `import mmds` brings numpy and the standard library at most, and the command line not even that."""

from __future__ import annotations

import subprocess
import sys

import mmds


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    after = "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    program = f"import sys; before = set(sys.modules)\n{code}\n{after}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_mmds_loads_nothing_else() -> None:
    assert modules_after("import mmds") - set(sys.stdlib_module_names) == {"mmds"}


def test_reading_needs_numpy_alone(tmp_path: str) -> None:
    code = (
        f"import mmds\nwith mmds.Writer({str(tmp_path)!r} + '/a.mmds') as w: w.write({{'x': 1}})\n"
        f"import subprocess\nprint(subprocess.run([sys.executable, '-c', '''import sys, mmds\n"
        f"assert mmds.open({str(tmp_path)!r} + '/a.mmds')[0] == dict(x=1)\n"
        f"print(*{{name.split('.')[0] for name in sys.modules}})'''], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded and loaded.isdisjoint({"xxhash", "msgspec", "torch", "PIL", "rich", "click"})


def test_help_loads_neither_numpy_nor_torch() -> None:
    loaded = modules_after("import mmds.cli\ntry: mmds.cli.main(['--help'])\nexcept SystemExit: pass")
    assert "click" in loaded and loaded.isdisjoint({"numpy", "torch", "rich", "PIL"})


def test_every_public_name_resolves_and_is_documented() -> None:
    assert mmds.__all__ == sorted(mmds.__all__) and set(mmds.__all__) <= set(dir(mmds))
    for name in mmds.__all__:
        assert getattr(mmds, name).__doc__, name
