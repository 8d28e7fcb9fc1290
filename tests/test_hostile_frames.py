"""Items of compressed fields that are no frames, or not the frames that they must be: refused by both readers, in bounds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import zstandard

from mmds import Array, Bytes, Text
from mmds.errors import FormatError
from mmds.fields import Kind
from mmds.format import DATA_START, layout, pack_end, pack_header
from mmds.schema import Schema
from tests import independent_reader
from tests.resealing import assert_refused, little, read_all

BYTES, TEXT = Bytes(compression="zstd"), Text(compression="zstd")
FIXED = Array("uint8", (300,), compression="zstd")
RAGGED = Array("uint16", (None,), compression="zstd")
FREE = Array("uint8", (None, None), compression="zstd")


def packed(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def file(kind: Kind, item: bytes, *, dictionary: bytes = b"", shape: bytes = b"") -> bytes:
    """Return a file of one sample whose only field is stored as `item`."""
    schema = Schema(kind)
    data_end = DATA_START + len(item)
    sections = layout(schema, 1, data_end, {0: len(dictionary)})
    data = bytearray(pack_header(schema) + item)
    arrays = {"ends": little(DATA_START) + little(data_end), "dictionary": dictionary, "shape": shape}
    for section in sections:
        data += bytes(section.offset - len(data)) + section.npy_header()
        data += arrays.get(section.role, bytes(section.nbytes))
    return bytes(data) + bytes(-len(data) % 64) + pack_end(schema, 1, data_end, sections, "0" * 64, {})


def declaring(size: int, blocks: bytes = b"\x01\0\0") -> bytes:
    """Return a frame that declares `size` bytes; its blocks are an empty one if nothing else is said."""
    return b"\x28\xb5\x2f\xfd\xe0" + little(size) + blocks


def zeros(blocks: int) -> bytes:
    """Return a valid frame of so many blocks of 128 KiB of zeros, each in 4 bytes: the most that a frame can hold."""
    block = 2**17 << 3 | 1 << 1  # one byte, repeated
    return declaring(
        blocks * 2**17, (block.to_bytes(3, "little") + b"\0") * (blocks - 1) + (block | 1).to_bytes(3, "little") + b"\0"
    )


HELLO = packed(b"hello" * 60)
FRAMES = {
    "no frame": (BYTES, b"hello, this is no frame", "not a zstd frame"),
    "a byte": (BYTES, b"\x28", "not a zstd frame"),
    "a frame cut short": (BYTES, HELLO[:-1], "a damaged zstd frame"),
    "two frames": (BYTES, HELLO * 2, "a damaged zstd frame"),
    "a byte behind a frame": (BYTES, HELLO + b"\0", "a damaged zstd frame"),
    "a skippable frame": (BYTES, b"\x50\x2a\x4d\x18\4\0\0\0abcd", "a zstd frame that is empty"),
    "an empty frame": (BYTES, packed(b""), "a zstd frame that is empty"),
    "a frame of unknown size": (BYTES, packed(b"hello", write_content_size=False), "or does not say its size"),
    "a frame that holds less": (BYTES, declaring(5), "a damaged zstd frame"),
    "a frame that holds more": (BYTES, declaring(5, b"\x31\0\0hello!"), "a damaged zstd frame"),
    "a reserved block": (BYTES, declaring(5, b"\x2f\0\0hello"), "a damaged zstd frame"),
    "a wrong checksum": (BYTES, packed(b"hello", write_checksum=True)[:-1] + b"\0", "a damaged zstd frame"),
    "a frame that declares 2**63": (BYTES, declaring(2**63), "which it cannot hold"),
    "a frame that declares 2**64 - 2": (BYTES, declaring(2**64 - 2), ""),
    "a frame that declares 2**64 - 1": (BYTES, declaring(2**64 - 1), ""),
    "a frame that declares a byte more than it can hold": (BYTES, declaring(16 * 2**15 + 1), "which it cannot hold"),
    "an array of another size": (FIXED, packed(bytes(299)), "a zstd frame of 299 bytes, expected 300"),
    "an array that would be large": (FIXED, declaring(2**30, bytes(2**16)), "of 1073741824 bytes, expected 300"),
    "an array without bytes": (FIXED, b"", "value: 1 times 300 bytes, but the data has 0"),
    "an array of half an element": (RAGGED, packed(bytes(5)), "5 bytes for an array of uint16 (None,)"),
    "text that is not UTF-8": (TEXT, packed(b"\xff"), "'utf-8' codec"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name: str) -> None:
    kind, item, message = FRAMES[name]
    assert_refused(file(kind, item), message)


def test_an_array_of_another_size_than_its_shape() -> None:
    shape = little(2, 4) + little(5, 4)
    assert read_all(file(FREE, packed(bytes(10)), shape=shape))[0].shape == (2, 5)
    assert_refused(file(FREE, packed(bytes(12)), shape=shape), "a zstd frame of 12 bytes, expected 10")
    assert_refused(file(FREE, packed(bytes(12)), shape=bytes(8)), "a zstd frame of 12 bytes, expected 0")


def test_dictionaries() -> None:
    samples: list[bytes | bytearray | memoryview] = [b"sample %d of them" % k for k in range(2000)]
    dictionary = zstandard.train_dictionary(2000, samples).as_bytes()
    item = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(dictionary)).compress(samples[7])
    good = file(BYTES, item, dictionary=dictionary)
    assert read_all(good) == independent_reader.read(good) == [samples[7]]
    assert_refused(file(BYTES, item), "a damaged zstd frame")
    for broken in (b"x", b"\0" * len(dictionary), dictionary[:100], dictionary[:8] + b"\xff" * 200):
        assert_refused(file(BYTES, item, dictionary=broken), "zstd frame (")
    assert_refused(file(BYTES, item, dictionary=bytes(2**20 + 1)), "a dictionary of more than 1048576 bytes")


def test_the_most_that_a_frame_can_hold_is_believed() -> None:
    assert read_all(file(BYTES, zeros(100))) == [bytes(100 * 2**17)]


def refuse_bombs() -> int:
    """Read frames that would fill any memory; return how many were refused."""
    large = packed(bytes(2**22))
    bombs = [file(BYTES, declaring(2**40, bytes(2**20))), file(BYTES, zeros(2**13)), file(FIXED, zeros(2**13))]
    bombs.append(file(BYTES, large[:5] + little(2**62) + large[5:]))
    for bomb in bombs:
        with pytest.raises(FormatError):
            read_all(bomb)
    return len(bombs)


@pytest.mark.fault(14)
def test_14_bombs_are_refused_in_little_memory() -> None:
    script = """if True:
        import resource
        from tests.test_hostile_frames import refuse_bombs
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 512 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(refuse_bombs())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4
