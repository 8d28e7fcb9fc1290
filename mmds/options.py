"""Options of commands that are no plain text or number: sizes, names with values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mmds.sizes import bytes_of


def size(text: str) -> int:
    """Return the number of bytes that `text` says.

    >>> size("1000000"), size("256MB"), size("1.5 GiB")
    (1000000, 256000000, 1610612736)
    """
    try:
        return bytes_of(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def path_or_url(text: str | Path) -> Path | str:
    """Return a path as a `Path`, and a URL as text.

    >>> path_or_url("a/b"), path_or_url("s3://bucket/b")
    (PosixPath('a/b'), 's3://bucket/b')
    """
    from mmds.remote import is_url  # it loads numpy, for which `mmds --help` has no use

    return str(text) if is_url(text) else Path(text)


def local_path(text: str | Path) -> Path:
    """Return a path as a `Path`; what is a URL is refused.

    >>> local_path("a/b")
    PosixPath('a/b')
    """
    path = path_or_url(text)
    if isinstance(path, Path):
        return path
    from mmds.errors import StorageError
    from mmds.remote import Remote

    try:
        url = Remote(path).url
    except StorageError as error:  # with credentials, which shall not be repeated
        raise click.BadParameter(str(error)) from None
    raise click.BadParameter(
        f"{url!r} is a URL, and this works on files: info, ls, show, export and convert read URLs; upload and convert "
        "write them"
    )


def name_value(text: str) -> tuple[str, Any]:
    """Return the name and the value of ``NAME=VALUE``; the value is JSON, or else text.

    >>> name_value("per=line"), name_value("columns=[1, 2]")
    (('per', 'line'), ('columns', [1, 2]))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
