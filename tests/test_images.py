"""Batches of pictures: the pixels of Pillow, the crops of torchvision, the same from any thread."""

from __future__ import annotations

import concurrent.futures
import gc
import io
import math
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from examples.pictures import photograph
from mmds import decode, gather, images
from mmds.errors import FormatError
from mmds.imageops import _GAMMA, Box, Operation, Plan, _splitmix64, uniforms
from mmds.images import (
    CenterCrop,
    ImageBatch,
    Normalize,
    PictureError,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)

NdArray = np.ndarray[Any, Any]


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def jpeg(name: str, size: tuple[int, int] | None = None) -> bytes:
    picture = photograph(name)
    return encode(picture if size is None else picture.resize(size), "JPEG", quality=90)


def operation_lists(*lists: list[Operation | Normalize]) -> tuple[list[Operation | Normalize], ...]:
    """Return the lists, which mypy would take for lists of objects."""
    return lists


def pixels(batch: torch.Tensor) -> NdArray:
    """Return a batch as integers of shape (batch, height, width, channels)."""
    return batch.permute(0, 2, 3, 1).numpy().astype(int)


def opened(data: bytes) -> Image.Image:
    """Return the pixels as simplejpeg has them: its libjpeg and Pillow's round differently."""
    return Image.fromarray(decode.picture(data, "RGB"))


CAT, COFFEE, ROCKET = jpeg("cat"), jpeg("coffee"), jpeg("rocket")
PHOTOGRAPHS = {"cat": CAT, "coffee": COFFEE, "rocket": ROCKET}
SMALL = jpeg("cat", (40, 30))


# The pixels


@pytest.mark.parametrize("data", PHOTOGRAPHS.values(), ids=PHOTOGRAPHS)
@pytest.mark.parametrize("size", [(224, 224), (64, 200), (33, 31), (700, 650)])
def test_resizing_is_pillows(data: bytes, size: tuple[int, int]) -> None:
    [got] = pixels(ImageBatch([Resize(size)], reduced=False)([data]))
    want = np.asarray(opened(data).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    enlarged = size[0] > 600
    assert np.abs(got - want).max() <= (2 if enlarged else 1)  # torch rounds weights to 16 bits, Pillow to 32
    assert (got != want).mean() < (0.1 if enlarged else 0.02)


@pytest.mark.parametrize("data", PHOTOGRAPHS.values(), ids=PHOTOGRAPHS)
def test_a_resized_crop_is_pillows(data: bytes) -> None:
    operation, seeds = RandomResizedCrop(96), np.arange(8)
    got = pixels(ImageBatch([operation], reduced=False)([data] * 8, seeds))
    picture = opened(data)
    for row, numbers in zip(got, uniforms(seeds, operation.draws).tolist(), strict=True):
        left, top, width, height = operation._box(picture.height, picture.width, numbers)
        crop = picture.crop((left, top, left + width, top + height))
        want = np.asarray(crop.resize((96, 96), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(row - want).max() <= 1


def test_resize_of_the_shorter_side_and_the_middle_of_it() -> None:
    for data in (CAT, COFFEE, encode(opened(CAT).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95)):
        [got] = pixels(ImageBatch([Resize(128), CenterCrop((96, 97))], reduced=False)([data]))
        picture = opened(data)
        w, h = picture.size  # as torchvision computes it
        w, h = (128, int(128 * h / w)) if w <= h else (int(128 * w / h), 128)
        left, top = round((w - 97) / 2), round((h - 96) / 2)
        resized = picture.resize((w, h), Image.Resampling.BILINEAR)
        want = np.asarray(resized.crop((left, top, left + 97, top + 96))).astype(int)
        assert np.abs(got - want).max() <= 1


def test_flips_after_and_before_a_crop() -> None:
    class Cut:
        draws = 0

        def plan(self, plan: Plan, uniform: Any) -> Plan:
            return plan.cut(10, 20, 150, 100)

    whole = decode.picture(CAT, "RGB")
    [got] = pixels(ImageBatch([Cut(), RandomHorizontalFlip(1), RandomVerticalFlip(1)])([CAT], np.arange(1)))
    assert np.array_equal(got, whole[20:120, 10:160][::-1, ::-1])
    [got] = pixels(ImageBatch([RandomHorizontalFlip(1), RandomVerticalFlip(1), Cut()])([CAT], np.arange(1)))
    assert np.array_equal(got, whole[::-1, ::-1][20:120, 10:160])
    [got] = pixels(ImageBatch([RandomVerticalFlip(1), Cut(), RandomVerticalFlip(1)])([CAT], np.arange(1)))
    assert np.array_equal(got, whole[::-1][20:120, 10:160][::-1])
    [plain] = pixels(ImageBatch([Resize((90, 80))])([CAT]))
    [got] = pixels(ImageBatch([Resize((90, 80)), RandomVerticalFlip(1), RandomHorizontalFlip(1)])([CAT], np.arange(1)))
    assert np.array_equal(got, plain[::-1, ::-1])


@pytest.mark.parametrize("width", [1, 7, 300, 12000])
def test_mirroring_pictures_of_any_width(width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (19, width, 3), np.uint8)
    want = picture[:, ::-1].copy()
    images._mirror(picture)
    assert np.array_equal(picture, want)


def test_a_flip_is_as_likely_as_it_says() -> None:
    seeds = np.arange(4000)
    batch = ImageBatch([RandomHorizontalFlip(0.25)])
    small = encode(Image.fromarray(np.arange(12, dtype="uint8").reshape(2, 2, 3)))
    share = (pixels(batch([small] * 4000, seeds))[:, 0, 0, 0] == 3).mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert not torch.equal(
        ImageBatch([RandomHorizontalFlip(0)])([small], seeds[:1]),
        ImageBatch([RandomHorizontalFlip(1)])([small], seeds[:1]),
    )


def test_crops_larger_than_the_picture_get_a_black_border() -> None:
    whole = decode.picture(SMALL, "RGB")  # 30 x 40
    [got] = pixels(ImageBatch([CenterCrop((35, 20))])([SMALL]))
    assert not got[:2].any() and not got[32:].any()  # torchvision: (35 - 30) // 2 above, one more below
    assert np.array_equal(got[2:32], whole[:, 10:30])
    [got] = pixels(
        ImageBatch([CenterCrop((35, 43)), RandomHorizontalFlip(1), RandomVerticalFlip(1)])([SMALL], np.ones(1, int))
    )
    assert np.array_equal(got[::-1, ::-1][2:32, 1:41], whole) and got.sum() == whole.sum()
    places = set()
    for row in pixels(ImageBatch([RandomCrop((30, 40), padding=2)])([SMALL] * 400, np.arange(400))):
        rows, columns = (np.flatnonzero(row.any((2, axis))) for axis in (1, 0))
        top, left = 2 - rows[0] + (rows[-1] < 29) * (29 - rows[-1]), 2 - columns[0] + 39 - columns[-1]
        padded = np.pad(whole, ((2, 2), (2, 2), (0, 0)))
        assert np.array_equal(row, padded[top : top + 30, left : left + 40])
        places.add((top, left))
    assert places == {(top, left) for top in range(5) for left in range(5)}


def test_without_operations_a_jpeg_is_decoded_into_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "render", None)
    monkeypatch.setattr(images._scratch, "take", None)
    batch = ImageBatch()([CAT, CAT])
    assert np.array_equal(pixels(batch), [decode.picture(CAT, "RGB")] * 2)
    assert batch.dtype == torch.uint8 and batch.shape == (2, 3, 300, 451)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_normalize() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = ImageBatch([Resize((50, 60)), RandomHorizontalFlip()])([CAT, COFFEE], np.arange(2))
    got = ImageBatch([Resize((50, 60)), RandomHorizontalFlip(), Normalize(mean, std)])([CAT, COFFEE], np.arange(2))
    want = (plain.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got.double(), want, atol=1e-5)
    unit = ImageBatch([Normalize(0, 1)], mode="L")([CAT])
    assert torch.allclose(unit * 255, ImageBatch(mode="L")([CAT]).float(), atol=1e-4)


MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "LA")
LACKING = {("JPEG", "P"), ("JPEG", "RGBA"), ("JPEG", "LA"), ("PNG", "CMYK"), ("GIF", "CMYK")}
KINDS = [(format, mode) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP") for mode in MODES]


@pytest.mark.parametrize(("format", "mode"), [kind for kind in KINDS if kind not in LACKING])
@pytest.mark.parametrize("wanted", ["RGB", "L"])
def test_pictures_of_every_kind(mode: str, format: str, wanted: str) -> None:
    data = encode(photograph("cat").resize((120, 90)).convert(mode), format)
    picture = Image.fromarray(decode.picture(data, wanted).squeeze())
    want = np.asarray(picture.resize((40, 50), Image.Resampling.BILINEAR)).reshape(50, 40, -1).astype(int)
    for source in (data, memoryview(data)):
        [got] = pixels(ImageBatch([Resize((50, 40))], mode=wanted, reduced=False)([source]))
        assert got.shape == (50, 40, {"RGB": 3, "L": 1}[wanted])
        assert np.abs(got - want).max() <= 1


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = pixels(ImageBatch([Resize(100)], reduced=False)([CAT]))
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    images._simplejpeg.cache_clear()
    try:
        slow = pixels(ImageBatch([Resize(100)])([CAT]))
    finally:
        images._simplejpeg.cache_clear()
    assert np.abs(fast - slow).max() <= 2


# Reduced decoding


def decoded_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes = []
    original = images._decode_jpeg

    def decode_jpeg(data: Any, mode: str, out: NdArray) -> NdArray:
        shapes.append(out.shape)
        return original(data, mode, out)

    monkeypatch.setattr(images, "_decode_jpeg", decode_jpeg)
    return shapes


def test_reduced_decoding_is_close_and_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = decoded_shapes(monkeypatch)
    data = jpeg("rocket", (1283, 851))
    for size, factor in ((851, 1), (426, 1), (425, 2), (213, 2), (212, 4), (106, 8), (50, 8)):
        shapes.clear()
        full, small = (pixels(ImageBatch([Resize(size)], reduced=flag)([data])) for flag in (False, True))
        assert shapes == [(851, 1283, 3)] * (size < 851) + [(-(-851 // factor), -(-1283 // factor), 3)] or size == 851
        assert full.shape == small.shape
        assert (factor == 1) == np.array_equal(full, small)
        assert np.abs(full - small).mean() < 1.5
        interior = (slice(None), slice(2, -2), slice(2, -2))
        for shift in (-1, 1):  # no pixel has moved
            assert np.abs(np.roll(full, shift, 2) - small)[interior].mean() > np.abs(full - small)[interior].mean()


def test_reduced_decoding_never_scales_up() -> None:
    rng = random.Random(0)
    factors = set()
    for _ in range(3000):
        height, width, size = rng.randint(1, 3000), rng.randint(1, 3000), rng.randint(1, 300)
        operation = RandomResizedCrop(size)
        plan = operation.plan(Plan.whole(height, width), [rng.random() for _ in range(operation.draws)])
        factor = plan.reduction()
        factors.add(factor)
        crop = plan.crop
        assert factor == 1 or (crop.width / factor >= size and crop.height / factor >= size)
        assert factor == 8 or max(width, height) < 16 or min(crop.width, crop.height) < 2 * factor * size
        left, top = round(crop.left / factor), round(crop.top / factor)  # what is read lies within the picture
        assert left < -(-width // factor) and top < -(-height // factor)
    assert factors == {1, 2, 4, 8}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_libjpeg_has_every_reduced_size(factor: int) -> None:
    rng = random.Random(factor)
    for _ in range(200):
        height, width = rng.choice(
            [(rng.randint(1, 70), rng.randint(16, 70)), (rng.randint(16, 70), rng.randint(1, 16))]
        )
        data = simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8))
        out = np.full((-(-height // factor), -(-width // factor), 3), 7, np.uint8)
        assert images._decode_jpeg(data, "RGB", out) is out
        assert not out.any()


def test_reduced_random_crops_are_those_of_full_decoding() -> None:
    data = jpeg("coffee", (1600, 1200))
    operation = RandomResizedCrop(64, scale=(0.1, 1))
    picture = opened(data)
    seeds, factors = np.arange(32), set()
    for row, numbers in zip(
        pixels(ImageBatch([operation])([data] * 32, seeds)), uniforms(seeds, 22).tolist(), strict=True
    ):
        plan = operation.plan(Plan.whole(picture.height, picture.width), numbers)
        factor, crop = plan.reduction(), plan.crop
        left, top = (round(edge / factor) * factor for edge in (crop.left, crop.top))  # half a block off at most
        want = picture.crop((left, top, left + crop.width, top + crop.height)).resize(
            (64, 64), Image.Resampling.BILINEAR
        )
        assert np.abs(row - np.asarray(want).astype(int)).mean() < 1.5
        factors.add(factor)
    assert factors == {4, 8}


# Random numbers


def reference_box(height: int, width: int, scale: Any, ratio: Any, rng: random.Random) -> Box:
    """Return a crop as torchvision 0.23's RandomResizedCrop.get_params draws it."""
    area = height * width
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target_area = area * rng.uniform(*scale)
        aspect_ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target_area * aspect_ratio)), round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            return Box(left, top, w, h)
    in_ratio = width / height
    if in_ratio < min(ratio):
        w, h = width, round(width / min(ratio))
    elif in_ratio > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        w, h = width, height
    return Box((width - w) // 2, (height - h) // 2, w, h)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (500, 150, (0.08, 1.0), (3 / 4, 4 / 3)),
        (100, 900, (0.5, 1.0), (3 / 4, 4 / 3)),  # mostly the fallback
        (900, 100, (0.5, 1.0), (3 / 4, 4 / 3)),
        (64, 64, (0.9, 1.0), (0.5, 0.6)),
        (5, 4, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: Any, ratio: Any) -> None:
    count = 8000
    operation = RandomResizedCrop(8, scale=scale, ratio=ratio)
    got = [operation._box(height, width, row) for row in uniforms(np.arange(count), operation.draws).tolist()]
    rng = random.Random(1)
    want = [reference_box(height, width, scale, ratio, rng) for _ in range(count)]
    for box in got:
        assert 0 <= box.left <= width - box.width and 0 <= box.top <= height - box.height
    measures: list[Callable[[Box], float]] = [
        lambda box: box.width * box.height,
        lambda box: box.width / box.height,
        lambda box: box.left,
        lambda box: box.top,
        lambda box: (box.left + 1) / (width - box.width + 1),
    ]
    for measure in measures:
        a, b = (np.sort([measure(box) for box in boxes]) for boxes in (got, want))
        values = np.union1d(a, b)  # two-sample Kolmogorov-Smirnov; below 1.95 * sqrt(2 / n) in 99.9 % of all cases
        distance = np.abs(np.searchsorted(a, values, "right") - np.searchsorted(b, values, "right")).max() / count
        assert distance < 1.95 * math.sqrt(2 / count)


def test_random_numbers_are_splitmix64_and_independent_of_the_batch() -> None:
    # of Vigna's splitmix64.c, seeded with 1234567
    state = np.array([1234567], np.uint64)
    assert _splitmix64(state + _GAMMA).tolist() == [6457827717110365317]
    assert _splitmix64(state + _GAMMA + _GAMMA).tolist() == [3203168211198807973]
    seeds = np.array([-1, 0, 1, 2**63 - 1])
    numbers = uniforms(seeds, 5)
    assert numbers.shape == (4, 5) and (numbers >= 0).all() and (numbers < 1).all()
    assert len(np.unique(numbers)) == 20
    one, other = uniforms(np.array([5, 5 + int(_GAMMA)], np.uint64), 5)  # counted from the seed itself, these overlap
    assert not np.isin(one, other).any()
    assert np.array_equal(uniforms(seeds[2:3], 5)[0], numbers[2])
    assert np.array_equal(uniforms(seeds.astype(np.uint64), 5), numbers)


def test_random_numbers_of_neighbouring_seeds_are_uniform_and_uncorrelated() -> None:
    for seeds in (np.arange(20000), np.arange(20000) << 40):
        numbers = uniforms(seeds, 4)
        assert np.abs(numbers.mean(0) - 0.5).max() < 4 * math.sqrt(1 / 12 / 20000)
        correlations = np.corrcoef(np.hstack([numbers[1:], numbers[:-1]]).T) - np.eye(8)
        assert np.abs(correlations).max() < 5 / math.sqrt(20000)


def test_a_picture_depends_on_its_seed_alone() -> None:
    batch = ImageBatch([RandomResizedCrop(32), RandomHorizontalFlip(), RandomVerticalFlip()])
    files, seeds = [CAT, COFFEE, ROCKET] * 4, np.arange(100, 112)
    together = batch(files, seeds)
    assert torch.equal(together, batch(files, seeds))
    assert not torch.equal(together, batch(files, seeds + 1))
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(batch([files[k] for k in order], seeds[order]), together[order])
    assert torch.equal(pickle.loads(pickle.dumps(batch))(files[:1], seeds[:1]), together[:1])


def test_draws_of_one_operation_are_not_those_of_another() -> None:
    gradient = np.arange(16, dtype="uint8").reshape(4, 4)
    data = encode(Image.fromarray(gradient))
    batch = ImageBatch([RandomHorizontalFlip(), RandomVerticalFlip()], mode="L")([data] * 200, np.arange(200))
    assert set(batch[:, 0, 0, 0].tolist()) == {0, 3, 12, 15}


# Threads and memory


def test_threads_do_not_disturb_each_other() -> None:
    png = encode(photograph("coffee"))
    tasks = [
        (ImageBatch(operations, mode=mode, reduced=reduced), [files[k % len(files)] for k in range(8)])
        for operations in operation_lists(
            [RandomResizedCrop(48), RandomHorizontalFlip()],
            [RandomResizedCrop((90, 70)), RandomVerticalFlip(), Normalize(0.5, 0.25)],
            [Resize(64), RandomCrop(60), RandomHorizontalFlip()],
        )
        for mode in ("RGB", "L")
        for reduced in (True, False)
        for files in ([CAT, ROCKET], [png, SMALL, COFFEE])
    ]
    want = [batch(files, np.arange(8)) for batch, files in tasks]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = list(pool.map(lambda task: task[0](task[1], np.arange(8)), tasks))
            assert all(map(torch.equal, got, want))


def test_torch_starts_no_threads_of_its_own() -> None:
    """Thread pools of torch would come on top of the loading threads, one pool for each of them."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chain: list[Operation | Normalize] = [
            RandomResizedCrop(400),
            RandomHorizontalFlip(1),
            RandomVerticalFlip(1),
            Normalize(0.5, 0.25),
        ]
        batch, mono = ImageBatch(chain, reduced=False), ImageBatch(chain, mode="L")
        pool.submit(lambda: None).result()
        before = threads()
        for images_of in (batch, mono):
            pool.submit(images_of, [CAT, COFFEE], np.arange(2)).result()
        assert threads() == before


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_memory_of_a_batch_is_used_again() -> None:
    gc.collect()
    gather._free.clear()
    batch = ImageBatch([Resize((300, 320))])
    first = batch([CAT] * 2)
    place = first.data_ptr()
    held, second = first[1], batch([COFFEE] * 2)
    assert second.data_ptr() != place
    del first
    third = batch([COFFEE] * 2)
    assert third.data_ptr() != place  # a view keeps it
    del held
    assert batch([CAT] * 2).data_ptr() == place


# Errors


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff", b"not a picture", CAT[:200], CAT[: len(CAT) // 2], encode(photograph("cat"))[:60], None],
)
@pytest.mark.parametrize("operations", [[], [Resize((300, 451))], [Resize((20, 20)), Normalize(0, 1)]])
@pytest.mark.fault(32)
def test_what_is_no_picture_is_named_by_its_position(data: Any, operations: Any) -> None:
    with pytest.raises(PictureError, match=r"^picture 2 of the batch: ") as caught:
        ImageBatch(operations)([CAT, CAT, data, CAT])
    assert caught.value.position == 2
    assert isinstance(caught.value, FormatError) and isinstance(caught.value.__cause__, Exception)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.position == 2 and str(copy) == str(caught.value)


def test_pictures_of_different_sizes_need_an_operation() -> None:
    with pytest.raises(PictureError, match=r"picture 1 .*400 x 600 pixels .*300 x 451 before it.*CenterCrop") as caught:
        ImageBatch()([CAT, COFFEE])
    assert caught.value.position == 1
    with pytest.raises(PictureError, match="100 x 149"):
        ImageBatch([Resize(100)])([COFFEE, COFFEE, ROCKET])
    assert ImageBatch([Resize(100), CenterCrop(100)])([COFFEE, CAT]).shape == (2, 3, 100, 100)


def test_crops_that_do_not_fit() -> None:
    with pytest.raises(PictureError, match=r"size=31.* 30 x 40 .*put a Resize before it"):
        ImageBatch([RandomCrop(31)])([SMALL], np.arange(1))
    with pytest.raises(PictureError, match="padded picture cannot be resized"):
        ImageBatch([CenterCrop(50), Resize(20)])([SMALL])
    strip = encode(Image.new("L", (1, 5000)))
    with pytest.raises(PictureError, match="resized to 5000000 x 1000"):
        ImageBatch([Resize(1000), CenterCrop(20)])([strip])


def test_resizing_what_was_resized_and_cut() -> None:
    plan = Plan.whole(400, 600).resize(200, 300).cut(50, 20, 100, 80).mirror().resize(40, 50)
    assert plan == Plan(Box(100, 40, 200, 160), (40, 50), Box(0, 0, 50, 40), mirrored=True)
    tiny = Plan.whole(3, 3).resize(300, 300).cut(299, 299, 1, 1).resize(5, 5)
    assert tiny.crop == Box(2, 2, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 17)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 20, 30))
    for data in (encode(picture), encode(picture, "JPEG", quality=100, subsampling=0)):
        for operations in operation_lists(
            [RandomResizedCrop(4)],
            [Resize((4, 4))],
            [Resize(4), CenterCrop(4), RandomHorizontalFlip(1)],
        ):
            batch = pixels(ImageBatch(operations)([data] * 30, np.arange(30)))
            assert batch.shape == (30, 4, 4, 3)
            assert np.abs(batch - (10, 20, 30)).max() <= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageBatch(mode="CMYK"), "'RGB' or 'L'"),
        (lambda: ImageBatch([Normalize(0, 1), Resize(3)]), r"Resize\(size=3\) behind Normalize"),
        (lambda: ImageBatch([Normalize((0.5, 0.5), 1)]), "2 numbers for pictures of 3 channels"),
        (lambda: ImageBatch()([]), "no pictures"),
        (lambda: ImageBatch([RandomHorizontalFlip()])([CAT]), "needs a seed"),
        (lambda: ImageBatch([RandomHorizontalFlip()])([CAT], np.arange(2)), "argument"),
        (lambda: Normalize(0, 0), "above 0"),
        (lambda: Resize(0), "size=0"),
        (lambda: CenterCrop((3, -1)), "size="),
        (lambda: RandomCrop(3, padding=-1), "padding=-1"),
        (lambda: RandomResizedCrop(3, scale=(0.5, 0.1)), "scale="),
        (lambda: RandomResizedCrop(3, ratio=(0, 1)), "ratio="),
        (lambda: RandomVerticalFlip(1.5), "probability"),
        (lambda: RandomHorizontalFlip(-1), "probability"),
    ],
)
def test_wrong_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_repr() -> None:
    batch = ImageBatch([RandomResizedCrop(224, ratio=(0.5, 2)), Normalize([0.5], 1)], mode="L", reduced=False)
    assert repr(batch) == (
        "ImageBatch([RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(0.5, 2)), Normalize(mean=(0.5,), std=1.0)], "
        "mode='L', reduced=False)"
    )
    assert eval(repr(batch)).operations == batch.operations
