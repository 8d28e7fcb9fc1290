"""Every exception that mmds raises on purpose, and the one place that makes untrusted text printable.

::

    MmdsError
    ├── FormatError (ValueError)          the bytes of a file break a rule of the format
    │   ├── VersionError                  the file is whole, but newer than this library
    │   └── PictureError                  a picture of a batch that cannot be decoded (in mmds.images)
    ├── SchemaError (ValueError)          fields that cannot be stored, or that do not exist
    ├── SampleError (ValueError)          a sample that does not fit its fields
    ├── SourceError (ValueError)          something in a conversion's source that cannot be used
    ├── OptionError (TypeError)           an option that this source does not have
    ├── ExpressionError (ValueError)      a condition that cannot be evaluated (in mmds.expressions)
    ├── StorageError (OSError)            the operating system refused to write or to publish
    │   └── ExistsError (FileExistsError) the destination exists and overwrite=True was not given
    ├── ChangedError (RuntimeError)       a dataset was replaced while it was in use
    ├── ClosedError (ValueError)          a writer or reader was used after its end
    └── MissingDependencyError (ImportError)

An index out of range is a plain ``IndexError``, and a path that does not exist a ``FileNotFoundError``,
because that is what Python's own sequences and files answer.
"""

from __future__ import annotations

import unicodedata


class MmdsError(Exception):
    """Base of all errors that mmds raises on purpose."""


class FormatError(MmdsError, ValueError):
    """The bytes of a file break a rule of the format; the message names file, place and reason."""


class VersionError(FormatError):
    """The file needs a newer mmds: an unknown major version or an unknown incompatible-feature bit."""


class SchemaError(MmdsError, ValueError):
    """Fields that cannot be stored as described, or a field name that a dataset does not have."""


class SampleError(MmdsError, ValueError):
    """A sample that does not fit its fields; the message names sample, field, expected and got.

    `reason` is the message without file and sample, for whoever knows these by other names.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message, reason)
        self.reason = reason or message

    def __str__(self) -> str:
        return str(self.args[0])


class SourceError(MmdsError, ValueError):
    """Something in a conversion's source that cannot be used, such as a corrupt picture."""


class OptionError(MmdsError, TypeError):
    """An option that a conversion's source does not have; the message lists those it has."""


class StorageError(MmdsError, OSError):
    """Writing or publishing failed in the operating system; ``errno`` is kept."""


class ExistsError(StorageError, FileExistsError):
    """The destination exists already and was left as it is."""


class ChangedError(MmdsError, RuntimeError):
    """The file at this path is no longer the one that the dataset was opened on."""


class ClosedError(MmdsError, ValueError):
    """A writer or reader was used after it was closed or after it failed."""


class MissingDependencyError(MmdsError, ImportError):
    """An optional package is not installed; the message holds the exact install command."""


def missing(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """Return the error for an optional `package` that `purpose` needs and that ``mmds[extra]`` brings."""
    return MissingDependencyError(
        f'{purpose} needs {package}, which is not installed. Run: pip install "mmds[{extra}]"'
    )


def printable(text: object, limit: int = 200) -> str:
    r"""Return `text` with every character escaped that could forge or disturb what a person sees.

    Control characters, line breaks, bidirectional overrides and lone surrogates become escapes. All names that come
    from a dataset or a source pass through here on their way to a terminal, a page or an error message.

    >>> printable("cat\x1b[2J\u202egnp.exe\n")
    'cat\\x1b[2J\\u202egnp.exe\\n'
    """
    shown = str(text)
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode("ascii") for c in shown)


def _is_plain(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] not in "CZ"
