from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_equal

import mmds
from mmds import obstores, remotefile
from mmds.cli import main
from mmds.errors import ChangedError, FormatError, SourceError, StorageError
from mmds.remote import Remote
from mmds.remotefile import TAIL, WINDOW
from tests.s3 import S3, WebServer
from tests.shard_folders import plain_sample, write_folder

Put = Callable[[Path], str]
_memory = count()

N = 1000  # samples, of which 350 are in a block of 1 MiB

FIELDS = {
    "image": mmds.Array("uint8", (50, 60)),
    "text": mmds.Text(),
    "note": mmds.Text(nullable=True),
    "box": mmds.Array("float32", (None, 4)),
    "key": mmds.Text(key=True),
    "label": mmds.Label(("cat", "dog")),
    "score": mmds.Scalar("float32", nullable=True),
}


def sample(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "image": rng.integers(0, 255, (50, 60), dtype=np.uint8),
        "text": f"text {i} " * (i % 7),
        "note": None if i % 3 else f"note {i}",
        "box": rng.random((i % 4, 4), dtype=np.float32),
        "key": f"k{i:05}",
        "label": i % 2,
        "score": None if i % 5 else i / 2,
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of some megabytes with fields of every way to be stored."""
    path = tmp_path_factory.mktemp("remotefile") / "a.mmds"
    with mmds.Writer(path, FIELDS, metadata={"made": "here"}) as writer:
        writer.extend(sample(i) for i in range(N))
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture(params=["s3", "http", "http without etags", "memory", "file"])
def put(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Put]:
    """Return the function that puts a file or folder into a store and returns its URL."""
    folder = tmp_path / "served"
    folder.mkdir()

    def copied(path: Path) -> Path:
        mmds.upload(path, (folder / path.name).as_uri())
        return folder / path.name

    if request.param == "file":
        yield lambda path: copied(path).as_uri()
    elif request.param.startswith("http"):
        with WebServer(folder, etags=request.param == "http") as server:
            yield lambda path: f"{server.url}/{copied(path).name}"
    else:
        base = f"memory://{next(_memory)}"
        if request.param == "s3":
            base = request.getfixturevalue("server").bucket(monkeypatch)
        yield lambda path: mmds.upload(path, f"{base}/some/").url


def same(found: Any, expected: Any) -> None:
    if hasattr(expected, "keys"):
        found, expected = dict(found), dict(expected)
    assert_equal(found, expected)


@pytest.mark.parametrize("verify", ["off", "read"])
def test_reads_as_a_file_does(put: Put, file: Path, verify: str) -> None:
    remote, local = mmds.open(put(file), verify=verify), mmds.open(file)
    assert (len(remote), remote.content_id, remote.metadata) == (len(local), local.content_id, local.metadata)
    for index in (0, 777, -1):
        same(remote[index], local[index])
    for indices in (np.random.default_rng(0).integers(0, N, 30), np.arange(40, 60), [7], [3, 3, 2]):
        same(remote[indices], local[indices])
        same(remote.gather(indices, ragged="padded"), local.gather(indices, ragged="padded"))
    for name in ("label", "score"):
        assert_equal(np.asarray(remote.column(name)[:]), np.asarray(local.column(name)[:]))
    assert_equal(remote.valid("score"), local.valid("score"))
    assert list(remote.column("key")[10:13]) == ["k00010", "k00011", "k00012"]
    same(remote.get("k00345"), local.get("k00345"))
    with pytest.raises(KeyError):
        remote.get("none")


def test_a_folder(put: Put, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [5, 0, 7, 3])
    mmds.add_column(folder, "added", np.arange(15))
    url = put(folder)
    for given in (url, url + "/"):
        reader = mmds.open(given)
        assert [reader[i] for i in range(15)] == [{**plain_sample(i), "added": i} for i in range(15)]
        assert reader.content_id == mmds.open(folder).content_id
        assert_equal(reader[[14, 0, 6]]["number"], [14, 0, 6])
        assert reader.path == given


def test_costs_of_a_file(server: S3, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    url = mmds.upload(file, server.bucket(monkeypatch) + "/a.mmds").url
    size = file.stat().st_size

    def cost(act: Callable[[], Any]) -> tuple[int, int]:
        server.clear()
        act()
        return len(server.asked()), server.sent

    opened = list[mmds.Reader]()
    sections = len(mmds.open(file).footer.sections)
    requests, sent = cost(lambda: opened.append(mmds.open(url)))
    assert (requests, sent) <= (2 + sections, TAIL + (1 + sections) * WINDOW)
    reader = opened[0]
    assert cost(lambda: (len(reader), reader.metadata, reader.fields)) == (0, 0)
    requests, sent = cost(lambda: reader[500])
    assert requests <= 8
    assert sent <= requests * WINDOW
    assert cost(lambda: reader[500])[0] == 0  # the window is there
    indices = np.sort(np.random.default_rng(0).permutation(N)[:20])
    requests, sent = cost(lambda: reader.rows(range(len(reader)))[indices])
    assert requests <= 2 + 2 * len(FIELDS) + 4 * 20  # four fields have values in the payload
    assert sent < size // 2
    requests, sent = cost(lambda: mmds.open(url).column("label")[:])
    assert requests <= 2
    assert sent <= N * 8 + TAIL
    requests, sent = cost(lambda: reader.get("k00002"))
    assert sent < size // 10


def test_costs_of_a_folder(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [4] * 10)
    url = mmds.upload(folder, server.bucket(monkeypatch) + "/out.mmds").url
    server.clear()
    reader = mmds.open(url)
    assert [request.path.rpartition("/")[2] for request in server.asked()][:3] == [
        "out.mmds",
        "dataset.json",
        "00000.mmds",
    ]
    assert not any("00001" in request.path for request in server.asked())
    server.clear()
    assert reader[38]["number"] == 38
    assert {request.path.rpartition("/")[2] for request in server.asked()} == {"00009.mmds"}
    server.clear()
    assert reader[39]["number"] == 39
    assert not server.asked()


def test_commands_read_little(server: S3, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    url = mmds.upload(file, server.bucket(monkeypatch) + "/a.mmds").url
    size = file.stat().st_size
    found = {}
    for command in (["info", url, "--json"], ["ls", url, "--json"], ["show", url, "700", "--json"]):
        server.clear()
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        assert 0 < server.sent < size // 3
        found[command[0]] = result.output
    info = json.loads(found["info"])
    assert (info["path"], info["samples"], info["file_bytes"]) == (url, N, size)
    assert info["fields"][5]["classes"] == {"cat": None, "dog": None}  # which would have to be fetched to be counted
    assert json.loads(found["ls"].splitlines()[1]) == {"sample": 1, "key": "k00001", "label": "dog", "score": None}
    assert json.loads(found["show"])["key"] == "k00700"
    by_key = CliRunner().invoke(main, ["show", url, "k00700", "--json"])
    assert by_key.output == found["show"]
    assert "k700" in CliRunner().invoke(main, ["show", url, "k700"]).output
    assert "1,000 samples" in CliRunner().invoke(main, ["info", url]).output


def test_commands_on_a_folder(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out.mmds", [4] * 10)
    url = mmds.upload(folder, server.bucket(monkeypatch) + "/out.mmds").url
    server.clear()
    info = json.loads(CliRunner().invoke(main, ["info", url, "--json"]).output)
    local = json.loads(CliRunner().invoke(main, ["info", str(folder), "--json"]).output)
    assert not any("00001" in request.path for request in server.asked())  # the manifest says it all
    for name in ("samples", "content_id", "file_bytes", "shards", "sidecars", "format", "fields", "metadata"):
        assert info[name] == local[name]


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "{}"],
        ["add-column", "{}", "x", "y.npy"],
        ["split", "a.mmds", "{}", "--count", "2"],
        ["upload", "{}", "{}"],
    ],
)
def test_commands_that_need_files_say_so(command: list[str]) -> None:
    result = CliRunner().invoke(main, [part.format("s3://bucket/a.mmds") for part in command])
    assert result.exit_code == 2
    assert "'s3://bucket/a.mmds' is a URL, and this works on files" in result.output


def test_copies_need_files(file: Path, tmp_path: Path) -> None:
    url = mmds.upload(file, f"memory://{next(_memory)}/a.mmds").url
    for act in (
        lambda: mmds.select(url, tmp_path / "b.mmds", [0]),
        lambda: mmds.merge([url, file], tmp_path / "b.mmds"),
        lambda: mmds.verify(url),
    ):
        with pytest.raises(SourceError, match="this is a URL; download it first"):
            act()
    mmds.convert(url, tmp_path / "c.mmds")
    assert len(mmds.open(tmp_path / "c.mmds")) == N


def test_a_dataset_of_a_url(server: S3, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    url = mmds.upload(file, server.bucket(monkeypatch) + "/a.mmds").url
    dataset, local = (
        mmds.MemoryMappedDataset(url, fields=("image", "label")),
        mmds.MemoryMappedDataset(file, fields=("image", "label")),
    )
    assert dataset.path == url
    assert len(pickle.dumps(dataset)) < 1000
    again = pickle.loads(pickle.dumps(dataset))
    assert_equal(again[7][0].numpy(), local[7][0].numpy())
    assert_equal(again[[1, 999]][1].numpy(), local[[1, 999]][1].numpy())


def test_workers_read_a_url_after_their_parent_has(server: S3, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    from torch.utils.data import DataLoader

    url = mmds.upload(file, server.bucket(monkeypatch) + "/a.mmds").url
    dataset = mmds.MemoryMappedDataset(url, fields="label")
    assert dataset[1] == 1
    loader = DataLoader(dataset, batch_size=400, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [batch.sum().item() for batch in loader] == [200, 200, 100]


def test_a_file_that_is_replaced(put: Put, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def write(shift: int, n: int) -> Path:
        path = tmp_path / str(shift) / "a.mmds"
        path.parent.mkdir()
        with mmds.Writer(path, {"x": mmds.Array("uint8", (5000,))}) as writer:
            writer.extend({"x": np.full(5000, (i + shift) % 256, np.uint8)} for i in range(n))
        return path

    names_versions = "without etags" not in request.node.name
    url = put(write(0, 200))
    reader = mmds.open(url)
    other = write(1, 200 if names_versions else 201)  # what has no ETag shows it by its length only
    if url.startswith("http"):
        (tmp_path / "served" / "a.mmds").write_bytes(other.read_bytes())
    else:
        Remote(url).replace(other.read_bytes())
    with pytest.raises(ChangedError, match="replaced while it was read" if names_versions else "had .* bytes, and now"):
        reader[100]
    assert mmds.open(url)[100]["x"][0] == 101


def test_damage(file: Path) -> None:
    remote = Remote(f"memory://{next(_memory)}/a.mmds")
    content = file.read_bytes()

    def flipped(at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]

    for damaged, reason in (
        (content[:-1], "no trailer|unfinished|cut short"),
        (content[:5000], "cut short"),
        (content[:100], "too few"),
        (b"", "an empty object"),
        (bytes(len(content)), "not an mmds file"),
        (flipped(10), "header"),
        (flipped(-300), "footer"),
        (flipped(-20), "trailer"),
        (content + b"\0" * 100, "no trailer"),
    ):
        remote.replace(damaged)
        with pytest.raises(FormatError, match=reason) as caught:
            mmds.open(remote.url)
        assert remote.url in str(caught.value)


def test_a_damaged_value_is_found_when_it_is_read(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[2**20 + 5] ^= 1
    remote = Remote(f"memory://{next(_memory)}/a.mmds")
    remote.create(bytes(content))
    reader = mmds.open(remote.url, verify="read")
    same(reader[900], mmds.open(file)[900])
    with pytest.raises(FormatError, match=r"block 1 .*samples? \d+"):
        for i in range(300, 400):
            reader[i]


def test_a_folder_whose_file_is_another(tmp_path: Path) -> None:
    url = mmds.upload(write_folder(tmp_path / "out.mmds", [2, 2]), f"memory://{next(_memory)}/out.mmds").url
    shard = Remote(url).child("00001.mmds")
    shard.replace(Remote(url).child("00000.mmds").load(10**6))
    reader = mmds.open(url)
    assert reader[1]["number"] == 1
    with pytest.raises(FormatError, match=r"not the file that dataset\.json lists"):
        reader[2]
    shard.delete()
    with pytest.raises(FormatError, match=r"missing, but dataset\.json lists it"):
        mmds.open(url)[2]
    Remote(url).child("dataset.json").replace(b"{}")
    with pytest.raises(FormatError, match=r"out\.mmds/dataset\.json: not a manifest"):
        mmds.open(url)


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(obstores, "MAX_RETRIES", 1)
    with S3() as server:
        url = mmds.upload(file, server.bucket(monkeypatch) + "/a.mmds").url
        reader = mmds.open(url)
    with pytest.raises(StorageError, match=f"^{url}: .*error sending request"):
        reader[500]
    with pytest.raises(StorageError, match=f"^{url}: .*error sending request"):
        mmds.open(url)
    server.start()
    with server:
        same(reader[500], mmds.open(file)[500])


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        (
            "memory://x/none.mmds",
            FileNotFoundError,
            "no dataset at memory://x/none.mmds: neither an object nor a folder",
        ),
        ("memory://x/*.mmds", FileNotFoundError, "patterns of URLs are not looked for"),
        (["memory://x/a.mmds"], SourceError, "a URL cannot be one of several files"),
        (Path("memory://x/a"), FileNotFoundError, "a URL is given as a str"),
    ],
)
def test_what_cannot_be_opened(given: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        mmds.MemoryMappedDataset(given)[0]


def test_options_that_urls_do_not_have(file: Path) -> None:
    url = mmds.upload(file, f"memory://{next(_memory)}/a.mmds").url
    with pytest.raises(SourceError, match="in_memory=True is for files"):
        mmds.open(url, in_memory=True)
    with pytest.raises(SourceError, match=r"only \.mmds files are read from URLs"):
        mmds.open(url, format="hdf5")


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many open shards, the ends that are kept are few; they are fetched again, and checked to be the same."""
    monkeypatch.setattr(remotefile, "_end", lru_cache(2)(remotefile._end.__wrapped__))
    folder = write_folder(tmp_path / "out.mmds", [2] * 5)
    url = mmds.upload(folder, f"memory://{next(_memory)}/out.mmds").url
    reader = mmds.open(url)
    for _ in range(2):
        assert [reader[i]["number"] for i in range(10)] == list(range(10))
    Remote(url).child("00000.mmds").replace((folder / "00001.mmds").read_bytes())
    with pytest.raises(ChangedError, match=r"00000\.mmds: was replaced"):
        reader[0]
