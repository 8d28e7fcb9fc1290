"""Less address space than a file has bytes (`ulimit -v`): it is read by position, and one warning per process says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mmds
from benchmarks.sparse import write_sparse
from tests.conftest import Cases
from tests.faults.machine import run_script

pytestmark = pytest.mark.fault(20)

COUNT, SIZE = 120, 2**18  # samples of 256 KiB: 30 MiB
ROOM = 20 * 2**20  # of address space that is left: neither the file nor the first shard fits, the second one does

READ = f"""
import json, resource, sys, warnings
from pathlib import Path
import numpy as np, mmds

def check(reader, rows):
    for row in rows[:20]:
        sample = reader[row]
        assert sample["row"] == row and (sample["data"] == row).all() and sample["name"] == f"name {{row}}"
    for part in range(0, len(rows), 8):
        batch = reader[rows[part : part + 8]]
        assert batch["row"].tolist() == rows[part : part + 8] and (batch["data"].T == batch["row"]).all()
    assert reader.column("row").tolist() == list(range({COUNT}))

paths = sys.argv[1:]
for path in paths:
    mmds.open(path)[[1, 2]]  # loads what is loaded at first use
rows = np.random.default_rng(0).permutation({COUNT}).tolist()
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {ROOM}, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    readers = [mmds.open(path) for path in paths]
    for reader in readers:
        check(reader, rows)
    assert len(mmds.open(paths[0])) == {COUNT}
print(json.dumps([str(each.message) for each in caught]))
"""


def test_20_less_address_space_than_a_file_has_bytes(tmp_path: Path, cases: Cases) -> None:
    path, folder = tmp_path / "a.mmds", tmp_path / "shards"
    with mmds.Writer(path) as writer:
        for row in range(COUNT):
            writer.write({"row": row, "data": np.full(SIZE, row, "u1"), "name": f"name {row}"})
    mmds.convert(path, folder, shard_size=ROOM + 2**20, num_workers=1)
    done = run_script(READ, path, folder)
    assert done.returncode == 0, done.stderr
    (warning,) = json.loads(done.stdout)
    assert "no address space for its map" in warning and "read by position" in warning
    assert done.stderr == ""
    cases(2 * COUNT)


@pytest.mark.stress
def test_20_training_without_address_space(tmp_path: Path) -> None:
    """PyTorch takes hundreds of megabytes of it for itself; the files are holes of 3 GB."""
    for number in range(2):
        write_sparse(tmp_path / f"{number}.mmds", 10**7)
    script = """if True:
        import resource, sys, warnings, mmds
        from pathlib import Path
        from torch.utils.data import DataLoader
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, resource.RLIM_INFINITY))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for path in (f"{sys.argv[1]}/0.mmds", f"{sys.argv[1]}/?.mmds"):
                dataset = mmds.MemoryMappedDataset(path)
                loader = DataLoader(dataset, 16, sampler=range(0, len(dataset), 100_000), num_workers=2,
                                    multiprocessing_context="fork")
                assert not dataset[5]["vector"].any()
                print(sum(len(batch["label"]) + int(batch["vector"].any()) for batch in loader))
        print(*caught)
    """
    done = run_script(script, tmp_path)
    assert done.stdout.startswith("100\n200\n") and done.stdout.count("no address space for its map") == 1, done.stderr
    assert done.stderr == ""


def test_20_a_billion_samples_without_address_space(tmp_path: Path) -> None:
    write_sparse(tmp_path / "a.mmds", 10**9)
    script = """if True:
        import resource, sys, warnings, mmds
        resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reader = mmds.open(sys.argv[1])
            assert reader[-1]["label"] == 0 and not reader[[3, 10**9 - 1]]["vector"].any()
        print(len(reader), len(caught))
    """
    done = run_script(script, tmp_path / "a.mmds")
    assert (done.stdout, done.stderr) == ("1000000000 1\n", "")
