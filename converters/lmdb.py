"""LMDB databases: a folder with data.mdb, as ``lmdb.open(path)`` expects it, or a single file (read only).

Keys are 8 bytes, the number of the sample, big-endian so that they sort; a record is MessagePack, one list per sample with
a value per field in the order of the description, which is JSON under the key "mmds":

    number, bool      as they are; complex numbers as their bytes, little-endian
    label             the class index
    array             the elements as bytes, little-endian, C order; with 2 or more unknown dimensions [sizes of these, bytes]
    text, json        a string
    bytes, image, ... bytes
    null              nil

Any other database has the fields "key" (text if the first key is, else bytes) and "value" (bytes), in the order of the keys.
What a value means (a pickle, Caffe's Datum) is the business of a transform; nothing is unpickled here.

Caveats. LMDB trusts its pages: a database that was damaged inside can crash the process. Here its size is compared with the
number of its pages, so that a truncated one is an error and not a bus error. A database is read without locks: it must
not be written to meanwhile. Named databases inside it appear as entries whose values mean nothing.
"""

from __future__ import annotations

import os

import lmdb

from mmds import canonical
from mmds.converters.inside import plain_file
from mmds.converters.lmdbenvironment import KEY, LmdbStore, shared_environment
from mmds.converters.lmdbforeign import open_foreign
from mmds.converters.lmdbrecords import FixedRecordItems, RecordItems, Records
from mmds.converters.lmdbwriter import Writer
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Fixed
from mmds.schema import Schema
from mmds.store import Items, file_identity

__all__ = ["Writer", "open_store"]


def open_store(path: str) -> LmdbStore:
    """Open a database: ours, or any other."""
    file = os.path.join(path, "data.mdb") if os.path.isdir(path) else path  # noqa: PTH112, PTH118
    if file != path and not os.path.exists(file):  # noqa: PTH110
        raise FormatError(f"{printable(path)}: a folder without data.mdb, so not an LMDB database")
    if file != path:
        plain_file(file, path)
    identity = file_identity(file)
    environment = shared_environment(file)
    try:
        with environment.lmdb.begin() as transaction:
            said = transaction.get(KEY)
        if said is None:
            return open_foreign(path, identity, environment)
    except lmdb.Error as error:
        raise FormatError(f"{printable(path)}: {printable(error)}") from None
    try:
        description = canonical.load(said)
        schema, n = Schema.from_json(description["fields"]), description["n"]
        metadata = description["metadata"]
        if not isinstance(metadata, dict) or type(n) is not int or not 0 <= n < environment.lmdb.stat()["entries"]:
            raise SchemaError(f"n = {printable(n)}, metadata = {type(metadata).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{printable(path)}: its 'mmds' key cannot be read: {printable(error)}") from None
    records = Records(path, environment, schema)
    items: list[Items] = []
    for position, field in enumerate(schema.fields):
        kind = field.kind
        if isinstance(kind, Fixed) and not kind.unknown and not kind.nullable:
            items.append(FixedRecordItems(records, position, kind, field.name))
        else:
            items.append(RecordItems(records, position, kind, field.name))
    return LmdbStore(path, schema, n, metadata, identity, items)
