"""The way back: a dataset's encoded files as a folder, under the names that they had.

A dataset with a field ``path`` gives those names, byte for byte. Where every path begins with the folder of its label, as
the folder formats write them, all labels get their folder, also those without samples. Without ``path``, files are called
``LABEL/000000123.ext`` or ``000000123.ext``, by the number of the sample and what the content is.

Files are what they were, byte for byte, where the dataset holds encoded files. Arrays become ``.npy`` files, which hold
the same array. Where the metadata says that pictures were encoded again, their names get the extension that fits.

Nobody vouches for a dataset: a path that is absolute, leads out of the folder, or clashes with another one is refused.
Everything is written to a new folder beside the destination, which it becomes when it is complete.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds.converters.outputfolder import OutputFolder
from mmds.converters.signatures import extension, fitting
from mmds.dtypes import LOGICAL
from mmds.errors import SchemaError, SourceError, StorageError, printable
from mmds.fields import Kind
from mmds.publish import storage_errors
from mmds.staging import Staging

FIRST_BATCH, MAX_BATCH = 1, 1024  # samples: a small batch tells how large they are
BATCH_BYTES = 8 * 2**20
ENCODED = (mmds.Image, mmds.Audio, mmds.Video)
OTHERS = (mmds.Bytes, mmds.Text, mmds.Json, mmds.Array)
EXTENSIONS: Mapping[type[Kind], str] = {mmds.Text: ".txt", mmds.Json: ".json", mmds.Array: ".npy"}
REENCODED = ("resize", "crop", "encode")  # metadata of a picture folder

Progress = Callable[[int, int | None, int], None]


def export_folder(
    reader: mmds.Reader,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the samples of `reader` as files to the new folder `destination`, and return how many there are.

    There has to be one field of encoded files (pictures, sounds, films), or one of bytes, text, JSON or arrays; a reader
    with ``fields=`` selects it. Folders above the destination are made. `progress` is called with (samples done, samples
    in all, 0) after every batch. Raises `SourceError` for names that cannot be used, `SchemaError`, `ExistsError`.
    """
    export = _Export(reader)
    destination = Path(destination)
    with storage_errors(destination):
        destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = Staging(destination, overwrite=overwrite)
    try:
        with storage_errors(destination):
            folder = OutputFolder(staging.content)
        with folder:
            export.write(folder, destination, progress)
        staging.publish()
    finally:
        staging.discard()
    return len(reader)


class _Export:
    """The fields of a dataset that matter here, and what has to be known to name the files."""

    def __init__(self, reader: mmds.Reader) -> None:
        self.reader = reader
        self.shown = printable(reader.store.path)
        self.path = next((k for k, each in enumerate(reader.fields) if _is_path(each)), None)
        self.content = self._content()
        self.kind = reader.fields[self.content].kind
        self.label = self._label()
        names = () if self.label is None else reader.fields[self.label].kind.names
        self.folders = self._class_folders(names)
        self.renamed = isinstance(self.kind, mmds.Array) or any(name in reader.metadata for name in REENCODED)
        self.in_class_folders = True  # every path so far begins with the folder of its label

    def _content(self) -> int:
        for kinds in (ENCODED, OTHERS):
            found = [k for k, each in enumerate(self.reader.fields) if isinstance(each.kind, kinds) and k != self.path]
            if len(found) == 1:
                if getattr(self.reader.fields[found[0]].kind, "dtype", None) in LOGICAL:
                    raise SchemaError(f"{self.shown}: {self.reader.fields[found[0]].kind.expected} has no .npy file")
                return found[0]
            if found:
                names = printable(", ".join(self.reader.fields.names[k] for k in found))
                raise SchemaError(
                    f"{self.shown}: several fields can be files ({names}); select one, and the path and label if there "
                    "are any, with fields="
                )
        raise SchemaError(f"{self.shown}: no field of files, bytes, text or arrays; there are: {self._names}")

    def _label(self) -> int | None:
        found = [k for k, each in enumerate(self.reader.fields) if isinstance(each.kind, mmds.Label)]
        called = [k for k in found if self.reader.fields[k].path[-1:] == ("label",)]
        if len(found) > 1 and len(called) != 1 and self.path is None:
            raise SchemaError(f"{self.shown}: several labels; select one with fields=; there are: {self._names}")
        return (called or found)[0] if found else None

    @property
    def _names(self) -> str:
        return printable(", ".join(self.reader.fields.names))

    def _class_folders(self, names: tuple[str, ...]) -> list[bytes | None]:
        """Return the name of each label's folder; None where the metadata say that there is none."""
        said = self.reader.metadata.get("class_folders", {})
        folders: list[bytes | None] = []
        for name in names:
            folder = said.get(name, name.encode().hex()) if isinstance(said, Mapping) else name.encode().hex()
            try:
                folders.append(None if folder is None else bytes.fromhex(folder))
            except (TypeError, ValueError):
                raise SourceError(f"{self.shown}: metadata: class_folders: no hex for '{printable(name)}'") from None
        return folders

    def write(self, folder: OutputFolder, destination: Path, progress: Progress | None) -> None:
        """Write all files."""
        start, size = 0, FIRST_BATCH
        while start < len(self.reader):
            indices = np.arange(start, min(start + size, len(self.reader)))
            leaves = self.reader.fields.leaves(self.reader[indices])
            for row, number in enumerate(indices.tolist()):
                value = leaves[self.content][row]
                label = None if self.label is None else leaves[self.label][row]
                path = None if self.path is None else leaves[self.path][row]
                self._write_one(folder, destination, number, value, label, path)
            start += len(indices)
            mean = sum(map(_nbytes, leaves)) // len(indices)
            size = max(1, min(MAX_BATCH, BATCH_BYTES // max(1, mean), 4 * size))
            del leaves  # before the next batch is read
            if progress is not None:
                progress(start, len(self.reader), 0)
        if self.in_class_folders:
            for name in self.folders:
                if name is not None:
                    self._put(folder, destination, name, None, "a label")

    def _write_one(
        self, folder: OutputFolder, destination: Path, number: int, value: Any, label: Any, path: Any
    ) -> None:
        where = f"sample {number}"
        if value is None:
            raise SourceError(f"{self.shown}: {where}: no value, which cannot be a file. Nothing was written")
        if label is not None and not 0 <= label < len(self.folders):
            raise SourceError(f"{self.shown}: {where}: label {label} of {len(self.folders)}. Nothing was written")
        data = _npy(value) if isinstance(self.kind, mmds.Array) else self.kind.encode(value)
        class_folder = None if label is None else self.folders[label]
        found = EXTENSIONS.get(type(self.kind)) or extension(bytes(data[:1024]))
        if self.path is None:
            name = b"%09d%s" % (number, (found or ".bin").encode())
            name = name if class_folder is None else class_folder + b"/" + name
        elif path is None:
            raise SourceError(f"{self.shown}: {where}: no path. Nothing was written")
        else:
            name = path.encode() if isinstance(path, str) else path
            self.in_class_folders &= class_folder is not None and name.startswith(class_folder + b"/")
            if self.renamed and found:
                name = fitting(name, found)
        self._put(folder, destination, name, data, where)

    def _put(self, folder: OutputFolder, destination: Path, name: bytes, data: Any, where: str) -> None:
        """Write a file, or make a folder where there are no data."""
        try:
            folder.put(name, data)
        except OSError as error:
            message = f"cannot write {printable(destination)}: {where}: '{_shown(name)}': {error.strerror}"
            raise StorageError(error.errno, message) from error
        except ValueError as error:
            raise SourceError(f"{self.shown}: {where}: '{_shown(name)}' {error}. Nothing was written") from None


def _is_path(field: mmds.Field) -> bool:
    return field.name == "path" and isinstance(field.kind, (mmds.Text, mmds.Bytes))


def _npy(value: Any) -> memoryview:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
    return file.getbuffer()


def _nbytes(values: Any) -> int:
    """Return about how many bytes the values of one field have."""
    if isinstance(values, np.ndarray):
        return values.nbytes
    return sum(
        getattr(value, "nbytes", None) or (len(value) if isinstance(value, (bytes, str)) else 8) for value in values
    )


def _shown(name: bytes) -> str:
    return printable(os.fsdecode(name))
