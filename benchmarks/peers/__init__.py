"""One adapter per library, in the order in which tables show them."""

from __future__ import annotations

from benchmarks.peers.array_record import ArrayRecord
from benchmarks.peers.base import Peer
from benchmarks.peers.ffcv import Ffcv
from benchmarks.peers.files import Files
from benchmarks.peers.hdf5 import Hdf5
from benchmarks.peers.huggingface import HuggingFace
from benchmarks.peers.lance import Lance
from benchmarks.peers.lightning import LitData
from benchmarks.peers.lmdb import Lmdb
from benchmarks.peers.mosaicml import Streaming
from benchmarks.peers.ninja import MmapNinja
from benchmarks.peers.npy import Npy
from benchmarks.peers.ours import Mmds
from benchmarks.peers.tensors import TensorDicts
from benchmarks.peers.webdataset import WebDataset
from benchmarks.peers.zarr import Zarr

_CLASSES: tuple[type[Peer], ...] = (
    Mmds, Files, Npy, MmapNinja, TensorDicts, Hdf5, Lmdb, Zarr, HuggingFace, Lance, ArrayRecord, WebDataset, Streaming,
    LitData, Ffcv,
)  # fmt: skip

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in _CLASSES}


def available(wanted: list[str]) -> tuple[list[str], list[str]]:
    """Return the peers that are installed, and a line with the command for each that is not."""
    found = [name for name in wanted if PEERS[name].installed()]
    return found, [
        f"{name} is not measured: not installed. Run: {PEERS[name].install}" for name in wanted if name not in found
    ]
