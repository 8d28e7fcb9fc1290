"""`mmds convert`: the options of `mmds.convert` as a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

import mmds
from mmds.options import name_value, path_or_url, size


@click.command()
@click.argument("source", type=path_or_url)
@click.argument("destination", type=path_or_url)
@click.option(
    "-j",
    "--num-workers",
    type=click.IntRange(1),
    help="Processes; the result does not depend on it. Default: all CPUs.",
)
@click.option("--from", "source_format", metavar="FORMAT", help="What SOURCE is, if it is not recognised.")
@click.option("--to", "destination_format", metavar="FORMAT", help="What DESTINATION shall be. Default: by its suffix.")
@click.option("--fields", metavar="NAMES", help="Only these fields, with commas.")
@click.option(
    "--rename",
    type=name_value,
    metavar="OLD=NEW",
    multiple=True,
    help="Give a field another name. More than once for more.",
)
@click.option("--filter", "filter_", metavar="MODULE:FUNCTION", help="Keep only the samples for which this is true.")
@click.option("--map", "map_", metavar="MODULE:FUNCTION", help="Change samples: to one, to None (dropped), or to many.")
@click.option("--batch-map", metavar="MODULE:FUNCTION", help="Change lists of samples to others.")
@click.option(
    "--output-fields", metavar="MODULE:NAME", help="Kinds of what functions return, or a function that gives them."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples for --batch-map.")
@click.option(
    "--shard-size",
    type=size,
    metavar="SIZE",
    help="Make DESTINATION a folder of files of about this size, such as 1GB.",
)
@click.option(
    "--shard-items",
    type=click.IntRange(1),
    metavar="N",
    help="Make DESTINATION a folder of files with what N items of SOURCE give each. Default with the next three: 8192.",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Convert on a Ray cluster.")
@click.option("--rank", type=click.IntRange(0), metavar="R", help="Do only part R of ...")
@click.option(
    "--world-size",
    type=click.IntRange(1),
    metavar="W",
    help="... W parts, from 0 on; each by a process of its own, on any host. Then `mmds commit DESTINATION`.",
)
@click.option("--resume", is_flag=True, help="Go on after the last whole shard of a conversion that was ended.")
@click.option("--append", is_flag=True, help="Add shards to DESTINATION, a folder of shards.")
@click.option(
    "--compression", metavar="zstd[:LEVEL][:dict]", help="Compress each value, but for pictures and the like."
)
@click.option(
    "-o",
    "--option",
    "more",
    type=name_value,
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of SOURCE's format, such as delimiter=;",
)
@click.option("--resize", type=click.IntRange(1), help="Resize pictures so that the shorter side has this many pixels.")
@click.option("--crop", type=click.IntRange(1), help="Then cut out a centred square of this many pixels.")
@click.option("--encode", metavar="jpeg:QUALITY|png|raw", help="Store pictures like this instead of as they are.")
@click.option(
    "--check",
    type=click.Choice(["quick", "decode"]),
    help="Look at the structure of each picture, or decode it. Default: quick.",
)
@click.option("--no-splits", is_flag=True, help="Take folders named train, val, test for classes, not for splits.")
@click.option("--limit", type=click.IntRange(0), help="Stop after this many samples.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip", "quarantine"]),
    default="raise",
    show_default=True,
    help="What to do with a bad sample: stop, leave it out, or leave it out and list it in a file.",
)
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    source: Path | str,
    destination: Path | str,
    num_workers: int | None,
    source_format: str | None,
    destination_format: str | None,
    fields: str | None,
    rename: tuple[tuple[str, str], ...],
    filter_: str | None,
    map_: str | None,
    resume: bool,
    no_progress: bool,
    no_splits: bool,
    as_json: bool,
    more: tuple[tuple[str, Any], ...],
    resize: int | None,
    crop: int | None,
    encode: str | None,
    check: str | None,
    **arguments: Any,
) -> None:
    """Pack SOURCE (a folder, an archive, a table, or a dataset in a store) into DESTINATION (an .mmds file, a store, or a URL).

    Samples are narrowed to the fields that are wanted, filtered, mapped, and mapped in batches, in this order. Functions are
    imported from modules on the path, or in the current folder.
    """
    from mmds.errors import MmdsError, SourceError, printable
    from mmds.terminal import print_conversion, progress

    pictures = {"resize": resize, "crop": crop, "encode": encode, "check": check}
    options = {**dict(more), **{name: value for name, value in pictures.items() if value is not None}}
    if no_splits:
        options["splits"] = False
    if filter_ or map_ or arguments["batch_map"] or arguments["output_fields"]:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; the workers get it, too
    try:
        with progress("converting", in_bytes=False, shown=not no_progress) as update:
            result = mmds.convert(
                source,
                destination,
                source_format=source_format,
                destination_format=destination_format,
                fields=fields.split(",") if fields else None,
                rename={old: str(new) for old, new in rename},
                filter=filter_,
                map=map_,
                num_workers=num_workers,
                resume=resume,
                progress=update,
                **arguments,
                **options,
            )
    except KeyboardInterrupt:
        if arguments["overwrite"] or all(arguments[name] is None for name in ("shard_size", "shard_items", "rank")):
            raise
        click.echo("\ninterrupted; the same command with --resume goes on after the last whole shard", err=True)
        sys.exit(130)
    except SourceError as error:
        for note in getattr(error, "__notes__", ()):  # where in somebody's function it came up
            click.echo(note, err=True)
        raise
    except ValueError as error:  # an option's value; mmds' own errors are about the data
        if isinstance(error, MmdsError):
            raise
        raise click.UsageError(printable(error, 1000)) from error
    if as_json:
        found = {
            "outputs": [{"path": str(output.path), "samples": output.samples} for output in result.outputs],
            "errors": [{"name": name, "reason": reason} for name, reason in result.errors],
            "ignored": {reason: ignored.count for reason, ignored in result.ignored.items()},
            "quarantine": None if result.quarantine is None else str(result.quarantine),
        }
        click.echo(json.dumps(found, indent=2))
    else:
        print_conversion(result)
        if arguments["rank"] is not None:
            paths = " ".join(printable(output.path, 4096) for output in result.outputs)
            click.echo(f"when all {arguments['world_size']} ranks are done: mmds commit {paths}", err=True)
