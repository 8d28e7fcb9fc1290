"""`MemoryMappedDataset`: what a sample is in each format, laziness, pickling, transforms, torchvision's attributes."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, WeightedRandomSampler

import mmds
from mmds.errors import ChangedError, FormatError, SchemaError
from tests.samples import jpeg, sample, write_every_kind, write_fixed


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_kind(tmp_path_factory.mktemp("every") / "kind.mmds")


def test_torch_format_gives_tensors_numbers_and_text(every_kind: Path) -> None:
    got, want = mmds.MemoryMappedDataset(every_kind)[7], sample(7)
    assert got["image"].dtype == torch.uint8 and got["image"].shape == (3, 32, 40)
    assert torch.equal(got["array"], torch.from_numpy(want["array"]))
    assert torch.equal(got["small"], torch.from_numpy(want["small"]))
    assert torch.equal(got["ragged"], torch.arange(3))
    assert got["bf16"].dtype == torch.bfloat16
    assert torch.equal(got["bf16"].view(torch.uint16), torch.from_numpy(want["bf16"]))
    for name in ("count", "score", "flag", "label", "nested", "maybe", "json"):
        assert got[name] == want[name] and type(got[name]) is type(want[name]), name


def test_numpy_format_gives_read_only_views_and_pixels_last(every_kind: Path) -> None:
    got = mmds.MemoryMappedDataset(every_kind, format="numpy")[7]
    assert got["image"].shape == (32, 40, 3) and got["image"].dtype == np.uint8
    assert not got["array"].flags.writeable and got["array"].base is not None
    with pytest.raises(ValueError):
        got["array"].setflags(write=True)


def test_pil_and_raw_formats(every_kind: Path) -> None:
    picture = mmds.MemoryMappedDataset(every_kind, format="pil")[3]["image"]
    assert isinstance(picture, Image.Image) and picture.mode == "RGB" and picture.size == (40, 32)
    raw = mmds.MemoryMappedDataset(every_kind, format="raw")[3]
    assert raw["image"] == jpeg(3) and isinstance(raw["array"], np.ndarray)
    assert mmds.MemoryMappedDataset(every_kind, decode=False)[3]["image"] == jpeg(3)


def test_fields_select_and_shape_the_sample(every_kind: Path) -> None:
    pair = mmds.MemoryMappedDataset(every_kind, fields=("image", "label"))[5]
    assert isinstance(pair, tuple) and pair[1] == 2
    assert mmds.MemoryMappedDataset(every_kind, fields="label")[5] == 2
    assert mmds.MemoryMappedDataset(every_kind, fields=["nested", "count"])[5] == {
        "count": 5,
        "nested": ("text 5", {"key": "key/5", "raw": b"\5" * 0}),
    }
    assert mmds.MemoryMappedDataset(every_kind, fields={"y": "label", "k": "nested.1.key"})[5] == {"y": 2, "k": "key/5"}
    with pytest.raises(SchemaError, match="no field 'lable'; there are: image, array"):
        len(mmds.MemoryMappedDataset(every_kind, fields=["lable"]))


def test_indices(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), format="numpy", fields=("image", "label"))
    assert dataset[-1][0].max() == 63 and dataset[np.int64(5)][1] == 2 and dataset[torch.tensor(5)][1] == 2
    part = dataset[10:20:3]
    assert isinstance(part, mmds.MemoryMappedDataset) and len(part) == 4
    assert [int(image[0, 0, 0]) for image, _ in part] == [10, 13, 16, 19]
    assert [int(image[0, 0, 0]) for image, _ in part[::-1]] == [19, 16, 13, 10]
    assert part.targets.tolist() == [1, 1, 1, 1]
    assert dataset[np.array([1, 2])][1].tolist() == dataset[torch.tensor([1, 2])][1].tolist() == [1, 2]
    images, labels = dataset[[3, -1, 3]]
    assert images[:, 0, 0, 0].tolist() == [3, 63, 3] and labels.tolist() == [0, 0, 0]
    assert part[[0, -1]][0][:, 0, 0, 0].tolist() == [10, 19]
    for wrong in (64, -65):
        with pytest.raises(IndexError, match=f"index {wrong} is out of range for 64 samples"):
            dataset[wrong]
    with pytest.raises(IndexError, match="index 4 is out of range for 4 samples"):
        part[[0, 4]]


def test_nothing_is_opened_before_the_first_read(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds")
    dataset = mmds.MemoryMappedDataset(path)
    assert dataset._handle is None
    assert str(path) not in Path("/proc/self/maps").read_text()
    _ = dataset[0]
    assert str(path) in Path("/proc/self/maps").read_text()


def test_pickle_is_small_and_carries_no_data(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds", count=5000))
    _ = dataset[3]
    data = pickle.dumps(dataset)
    assert len(data) < 1024
    again = pickle.loads(data)
    assert torch.equal(again[3]["image"], dataset[3]["image"]) and len(again) == 5000
    assert len(pickle.dumps(dataset[10:100])) < 1024 and len(pickle.loads(pickle.dumps(dataset[10:100]))) == 90


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    before = dataset[1]["image"]
    pickled = pickle.dumps(dataset)
    with mmds.Writer(tmp_path / "a.mmds", overwrite=True) as writer:
        writer.write({"image": np.zeros((3, 16, 16), "uint8"), "label": 0})
    assert torch.equal(dataset[1]["image"], before)  # the old view stays whole
    with pytest.raises(ChangedError, match="was replaced since this dataset was opened"):
        pickle.loads(pickled)[1]
    pid = os.fork()
    if pid == 0:  # a child reopens, and must not mix the two files
        try:
            dataset[1]
            os._exit(1)
        except ChangedError:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_handle_belongs_to_one_process(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    parent = dataset._open()
    pid = os.fork()
    if pid == 0:
        ok = dataset[9]["image"].max() == 9 and dataset._handle is not parent
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert dataset._open() is parent


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        mmds.MemoryMappedDataset(tmp_path / "missing.mmds")
    with pytest.raises(ValueError, match="format='tf': expected one of torch, numpy, pil, raw"):
        mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), format="tf")
    (tmp_path / "b.mmds").write_bytes(b"not a dataset" * 1000)
    with pytest.raises(FormatError, match="not an mmds file"):
        len(mmds.MemoryMappedDataset(tmp_path / "b.mmds"))


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_a_transform_may_write_in_place(tmp_path: Path, format: str) -> None:
    path = write_fixed(tmp_path / "a.mmds")
    content = path.read_bytes()

    def black(image: Any) -> Any:
        image[...] = 0
        return image

    dataset = mmds.MemoryMappedDataset(path, fields=("image", "label"), transform=black, format=format)
    assert dataset[7][0].max() == 0
    assert all(image.max() == 0 for image, _ in dataset.__getitems__([7, 8]))
    assert mmds.MemoryMappedDataset(path, format=format)[7]["image"].max() == 7
    assert path.read_bytes() == content


def test_torch_samples_are_the_callers_own(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    dataset[7]["image"].zero_()
    dataset[[7, 8]]["image"].zero_()
    assert dataset[7]["image"].max() == 7


def test_transform_gets_the_input_of_a_pair_and_other_samples_whole(tmp_path: Path) -> None:
    path = write_fixed(tmp_path / "a.mmds")
    pairs = mmds.MemoryMappedDataset(
        path,
        fields=("image", "label"),
        transform=lambda image: image.float(),
        target_transform=lambda label: label + 10,
    )
    image, label = pairs[4]
    assert image.dtype == torch.float32 and label == 11
    assert mmds.MemoryMappedDataset(path, transform=lambda s: sorted(s))[0] == ["image", "label"]
    with pytest.raises(SchemaError, match='fields=\\("image", "label"\\)'):
        mmds.MemoryMappedDataset(path, target_transform=str)[0]


def test_classes_and_targets_as_torchvision_has_them(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"))
    assert dataset.classes == ["a", "b", "c"] and dataset.class_to_idx == {"a": 0, "b": 1, "c": 2}
    assert dataset.targets.dtype == np.int64 and dataset.targets.tolist() == [n % 3 for n in range(64)]
    weights = 1 / np.bincount(dataset.targets)[dataset.targets]
    drawn = list(WeightedRandomSampler(weights.tolist(), 10))
    assert len(drawn) == 10 and dataset.__getitems__(drawn)
    with mmds.Writer(tmp_path / "b.mmds") as writer:
        writer.write({"x": 1})
    with pytest.raises(AttributeError, match="no label field; its fields are x"):
        _ = mmds.MemoryMappedDataset(tmp_path / "b.mmds").classes


def test_a_corrupt_picture_names_file_sample_and_field(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds", {"image": mmds.Image()}) as writer:
        writer.extend([{"image": jpeg(0)}, {"image": jpeg(1)[:100]}])
    dataset = mmds.MemoryMappedDataset(tmp_path / "a.mmds")
    with pytest.raises(FormatError, match=r"a\.mmds: sample 1, field 'image': cannot be decoded: .*; use decode=False"):
        dataset[1]
    assert isinstance(dataset[0]["image"], torch.Tensor)


def test_without_torch_the_error_holds_the_install_command() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import mmds\n"
        "try: mmds.MemoryMappedDataset\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'MemoryMappedDataset needs torch, which is not installed. Run: pip install "mmds[torch]"\n'


def test_what_would_be_ignored_after_the_first_read_cannot_be_changed(tmp_path: Path) -> None:
    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), decode=False, format="numpy")
    for again in (
        dataset,
        dataset[3:9],
        copy.copy(dataset),
        copy.deepcopy(dataset),
        pickle.loads(pickle.dumps(dataset)),
    ):
        assert again.format == "numpy" and again.decode is False
        with pytest.raises(AttributeError, match=r"format cannot be .*; make a new .*\(\.\.\., format='torch'\)"):
            again.format = "torch"
        with pytest.raises(AttributeError, match=r"decode cannot be .*; make a new .*\(\.\.\., decode=True\)"):
            again.decode = True
        assert isinstance(again[0]["image"], np.ndarray) and again.format == "numpy" and again.decode is False
        again.transform = sorted
        assert again[0] == ["image", "label"]
        again.transform = None


class Doubled(mmds.MemoryMappedDataset):
    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return image, label * 2


def test_a_subclass_may_replace_getitem(tmp_path: Path) -> None:
    dataset = Doubled(write_fixed(tmp_path / "a.mmds"), fields=("image", "label"))
    labels = torch.cat([label for _, label in DataLoader(dataset, batch_size=16)])
    assert labels.tolist() == [n % 3 * 2 for n in range(64)]
    part = dataset.__class__(dataset.path, fields=("image", "label"))
    assert [label for _, label in part.__getitems__([5, -1])] == [4, 0]


def test_a_transform_that_is_set_later_gets_its_own_copy(tmp_path: Path) -> None:
    def black(image: Any) -> Any:
        image[...] = 0
        return image

    dataset = mmds.MemoryMappedDataset(write_fixed(tmp_path / "a.mmds"), fields=("image", "label"), format="numpy")
    assert dataset[7][0].max() == 7
    dataset.transform = black
    assert dataset[7][0].max() == 0
    dataset.transform = None
    assert dataset[7][0].max() == 7
    dataset.transform = black
    assert all(image.max() == 0 for image, _ in dataset.__getitems__([7, 8]))
