"""`mmds select`, `mmds merge` and `mmds split`: cutting and joining datasets, on the command line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mmds
from mmds.options import local_path, size

if TYPE_CHECKING:
    from mmds.conversion import Output

Command = Callable[..., None]


def _shared(command: Command) -> Command:
    """Add the options that all three have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--no-progress", is_flag=True, help="Draw no progress bar."),
        click.option("--overwrite", is_flag=True, help="Replace files that exist."),
    ):
        command = option(command)
    return command


def indices(text: str) -> list[slice | int]:
    """Return what numbers and slices with commas mean.

    >>> indices("0:100,5,-10:")
    [slice(0, 100, None), 5, slice(-10, None, None)]
    """
    try:
        return [
            slice(*(int(number) if number.strip() else None for number in part.split(":")))
            if ":" in part
            else int(part)
            for part in text.split(",")
        ]
    except (ValueError, TypeError):
        raise click.BadParameter(f"{text!r}: expected numbers and slices, such as 0:100,5,-10:") from None


def fractions(text: str) -> dict[str, float] | list[float]:
    """Return shares of parts, with names or without.

    >>> fractions("train=0.9,val=0.1"), fractions("0.9,0.1")
    ({'train': 0.9, 'val': 0.1}, [0.9, 0.1])
    """
    try:
        if "=" not in text:
            return [float(share) for share in text.split(",")]
        pairs = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected shares such as train=0.9,val=0.1, or 0.9,0.1") from None
    if len(shares) < len(pairs):
        raise click.BadParameter(f"{text!r}: two parts of one name")
    return shares


@click.command()
@click.argument("source")
@click.argument("destination", type=local_path)
@click.option(
    "--indices", "chosen", type=indices, metavar="0:100,5", help="Which samples: numbers and slices, in this order."
)
@click.option("--where", metavar="CONDITION", help="Only those for which this is true, such as \"label == 'cat'\".")
@click.option("--fields", metavar="NAMES", help="Only these fields, with commas.")
@_shared
def select(
    source: str,
    destination: Path,
    chosen: list[slice | int] | None,
    where: str | None,
    fields: str | None,
    overwrite: bool,
    no_progress: bool,
    as_json: bool,
) -> None:
    """Copy some samples of SOURCE, an .mmds file, a folder of shards or a pattern, to DESTINATION, without decoding them.

    A condition compares columns: label == 'cat' and 100 < width and path.startswith('train/') and key in ['a', 'b'].
    """
    wanted: Any = None
    if chosen is not None:
        wanted = chosen[0] if isinstance(chosen[0], slice) and len(chosen) == 1 else _numbers(source, chosen)
    names = fields.split(",") if fields else None
    with _progress("selecting", no_progress) as update:
        output = mmds.select(
            source, destination, wanted, where=where, fields=names, overwrite=overwrite, progress=update
        )
    _print([output], as_json)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("destination", type=local_path)
@_shared
def merge(sources: tuple[str, ...], destination: Path, overwrite: bool, no_progress: bool, as_json: bool) -> None:
    """Copy the samples of all SOURCES, one after the other, to DESTINATION. All have the same fields."""
    with _progress("merging", no_progress) as update:
        output = mmds.merge(sources, destination, overwrite=overwrite, progress=update)
    _print([output], as_json)


@click.command()
@click.argument("source")
@click.argument("destination", type=local_path)
@click.option("--size", type=size, metavar="SIZE", help="At most so many bytes of samples in each part, such as 1GB.")
@click.option("--count", type=click.IntRange(1), help="So many samples in each part.")
@click.option("--fractions", type=fractions, metavar="train=0.9,val=0.1", help="Shares of a random split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which random split.")
@click.option("--stratify", metavar="COLUMN", help="Keep the shares within each value of this column.")
@_shared
def split(source: str, destination: Path, overwrite: bool, no_progress: bool, as_json: bool, **how: Any) -> None:
    """Copy the samples of SOURCE to several files, named after DESTINATION: out-00000.mmds, or out-train.mmds.

    By --size or --count, neighbours stay together; by --fractions, samples are distributed at random. One of these is needed.
    """
    if sum(how[name] is not None for name in ("size", "count", "fractions")) != 1:
        raise click.UsageError("expected one of --size, --count and --fractions")
    with _progress("splitting", no_progress) as update:
        outputs = mmds.split(source, destination, overwrite=overwrite, progress=update, **how)
    _print(outputs, as_json)


def _numbers(source: str, parts: list[slice | int]) -> Any:
    """Return the numbers that slices and numbers mean, as one array."""
    import numpy as np

    n = len(mmds.open(source))
    arrays = [np.arange(*part.indices(n)) if isinstance(part, slice) else np.array([part]) for part in parts]
    return np.concatenate(arrays)


@contextlib.contextmanager
def _progress(what: str, hidden: bool) -> Iterator[Callable[..., None] | None]:
    from mmds.errors import MmdsError, printable
    from mmds.terminal import progress

    try:
        with progress(what, in_bytes=False, shown=not hidden) as update:
            yield update
    except (ValueError, TypeError) as error:  # an option's value; mmds' own errors are about the data
        if isinstance(error, MmdsError):
            raise
        raise click.UsageError(printable(error, 1000)) from error


def _print(outputs: Iterable[Output], as_json: bool) -> None:
    from mmds.conversion import Conversion
    from mmds.terminal import print_conversion

    if as_json:
        found = [{"path": str(output.path), "samples": output.samples} for output in outputs]
        click.echo(json.dumps({"outputs": found}, indent=2))
    else:
        print_conversion(Conversion(tuple(outputs)))
