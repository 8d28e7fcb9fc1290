"""The stores beside ``.mmds``: one module per library, found by name, by suffix, or by a look at the content.

To add one, write a module with ``open_store(path) -> mmds.store.Store`` and a class ``Writer(StoreWriter)``, and add a line
to `STORES`; a package of your own does so by an entry point in the group ``mmds.stores`` whose value is a `StoreFormat`.
A store made of arrays builds on `arraystore.ArrayStore` and `arrays.ArrayWriter`; CONTRIBUTING has the steps.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmds.converters.inside import refuse_special
from mmds.errors import SourceError, missing, printable
from mmds.manifest import MAGIC, NAME

if TYPE_CHECKING:
    from mmds.store import Store
    from mmds.storewriter import StoreWriter


def _starts_with(magic: bytes) -> Callable[[Path], bool]:
    def check(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(magic)) == magic

    return check


def _is_lmdb(path: Path) -> bool:
    """Return whether `path` is an LMDB: a folder with data.mdb, or a file with LMDB's magic in its first page."""
    if not path.is_file():
        return (path / "data.mdb").exists()
    with path.open("rb") as file:
        return file.read(20)[16:] == b"\xde\xc0\xef\xbe"


def _is_arrow(path: Path) -> bool:
    """Return whether `path` is an Arrow file, or a folder that `datasets` has saved."""
    return _starts_with(b"ARROW1")(path) or _contains("state.json", "dataset_dict.json")(path)


def _contains(*names: str) -> Callable[[Path], bool]:
    return lambda path: any((path / name).exists() for name in names)


def _has_arrays(path: Path) -> bool:
    return path.is_dir() and ((path / "mmds.json").exists() or any(path.glob("*.npy")))


@dataclass(frozen=True)
class StoreFormat:
    """A line of the table of stores."""

    name: str
    module: str
    package: str  # what has to be importable
    extra: str  # of mmds, that brings the package
    suffixes: tuple[str, ...]
    recognise: Callable[[Path], bool]

    def open(self, path: str) -> Store:
        """Open the store at `path` for reading."""
        refuse_special(path)
        store: Store = self._load("reading").open_store(path)
        return store

    @property
    def writer(self) -> type[StoreWriter]:
        """The class that writes such a store."""
        writer: type[StoreWriter] = self._load("writing").Writer
        return writer

    def _load(self, what: str) -> Any:
        try:
            importlib.import_module(self.package)
        except ImportError:
            raise missing(self.package, self.extra, f"{what} {self.name}") from None
        return importlib.import_module(self.module)


STORES = (
    StoreFormat("hdf5", "mmds.converters.hdf5", "h5py", "hdf5", (".h5", ".hdf5"), _starts_with(b"\x89HDF\r\n\x1a\n")),
    StoreFormat(
        "zarr", "mmds.converters.zarr", "zarr", "zarr", (".zarr",), _contains("zarr.json", ".zgroup", ".zarray")
    ),
    StoreFormat(
        "tiledb",
        "mmds.converters.tiledb",
        "tiledb",
        "tiledb",
        (".tiledb",),
        _contains("__tiledb_group.tdb", "__group", "__schema"),
    ),
    StoreFormat("npy", "mmds.converters.npy", "numpy", "", (".npyd", ".npz", ".npy"), _has_arrays),
    StoreFormat("lmdb", "mmds.converters.lmdb", "lmdb", "lmdb", (".lmdb",), _is_lmdb),
    StoreFormat("arrow", "mmds.converters.arrow", "pyarrow", "arrow", (".arrow", ".feather"), _is_arrow),
    StoreFormat("parquet", "mmds.converters.parquet", "pyarrow", "arrow", (".parquet",), _starts_with(b"PAR1")),
)


@cache
def all_stores() -> dict[str, StoreFormat]:
    """Return all stores by name: those of mmds, and those that other packages register.

    One that cannot be loaded is left out with a warning, so that it does not keep anybody from reading other stores.
    """
    found = {store.name: store for store in STORES}
    for entry in entry_points(group="mmds.stores"):
        try:
            store = entry.load()
        except Exception as error:  # noqa: BLE001 (another package's code)
            what = (
                f"the store '{printable(entry.name)}' ({printable(entry.value)}) cannot be loaded: {printable(error)}"
            )
            warnings.warn(what, RuntimeWarning, stacklevel=2)
            continue
        found.setdefault(store.name, store)
    return found


def find_store(path: str | os.PathLike[str], format: str | None = None) -> StoreFormat | None:
    """Return the store called `format`, or the one that `path` shows by suffix or content, or None.

    Raises `SourceError` for a format that there is not.
    """
    stores = all_stores()
    if format is not None:
        if format not in stores:
            raise SourceError(f"no store '{printable(format)}'; there are: mmds, {', '.join(stores)}")
        return stores[format]
    path = Path(path)
    by_suffix = [store for store in stores.values() if path.suffix.lower() in store.suffixes]
    if by_suffix or path.suffix.lower() == ".mmds" or _starts_with(MAGIC)(path / NAME):
        return by_suffix[0] if by_suffix else None
    return next((store for store in stores.values() if store.recognise(path)), None)
