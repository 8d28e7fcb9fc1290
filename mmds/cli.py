"""The `mmds` command. Nothing but click is imported until a command runs, so that `mmds --help` answers at once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import click

import mmds


class _Commands(click.Group):
    """Commands whose known errors end them with one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from mmds.errors import MmdsError, printable

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # in a locale without "█", an escape is better than an error
                stream.reconfigure(errors="backslashreplace")

        try:
            return super().invoke(ctx)
        except MmdsError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:  # `mmds ls | head`: click ends quietly
            raise
        except (OSError, IndexError) as error:
            raise click.ClickException(printable(error, 1000)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mmds")
def main() -> None:
    """Memory-mapped datasets for machine-learning training: one flat file, shared by all workers."""


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "-j", "--num-workers", type=click.IntRange(1), help="Readers at the same time; the result does not depend on it."
)
@click.option("--from", "source_format", metavar="FORMAT", help="What SOURCE is, if it is not recognised.")
@click.option("--to", "destination_format", metavar="FORMAT", help="What DESTINATION shall be. Default: by its suffix.")
@click.option("--fields", metavar="NAMES", help="Only these fields, with commas (from a store).")
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
    source: Path,
    destination: Path,
    num_workers: int | None,
    source_format: str | None,
    destination_format: str | None,
    fields: str | None,
    limit: int | None,
    on_error: str,
    overwrite: bool,
    no_progress: bool,
    no_splits: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Pack SOURCE (a folder of pictures, or a dataset in any store) into DESTINATION (an .mmds file, or any store)."""
    from mmds.errors import MmdsError, printable
    from mmds.terminal import print_conversion, progress

    chosen = {name: value for name, value in options.items() if value is not None}
    if no_splits:
        chosen["splits"] = False
    try:
        with progress("converting", in_bytes=False, shown=not no_progress) as update:
            result = mmds.convert(
                source,
                destination,
                source_format=source_format,
                destination_format=destination_format,
                fields=fields.split(",") if fields else None,
                num_workers=num_workers,
                limit=limit,
                on_error=on_error,
                overwrite=overwrite,
                progress=update,
                **chosen,
            )
    except ValueError as error:  # an option's value; mmds' own errors are about the data
        if isinstance(error, MmdsError):
            raise
        raise click.UsageError(printable(error, 1000)) from error
    if as_json:
        _print_json(
            {
                "outputs": [{"path": str(output.path), "samples": output.samples} for output in result.outputs],
                "errors": [{"name": name, "reason": reason} for name, reason in result.errors],
                "ignored": {reason: ignored.count for reason, ignored in result.ignored.items()},
                "quarantine": None if result.quarantine is None else str(result.quarantine),
            }
        )
    else:
        print_conversion(result)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: Path, as_json: bool) -> None:
    """Say what is in PATH: fields, counts, sizes, classes, metadata, and what of it is no field."""
    from mmds.errors import printable
    from mmds.summary import summarize

    summary = summarize(mmds.open(path))
    if as_json:
        _print_json(summary)
    else:
        from mmds.terminal import print_summary

        print_summary(summary)
        for name, reason in summary.get("left_out", {}).items():
            click.echo(f"left out {printable(name)}: {printable(reason, 500)}")


@main.command("ls")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--start", type=int, default=0, show_default=True, help="The first sample; negative counts from the end.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="How many samples; 0 for all.")
@click.option("--fields", help="Names of the fields to show, with commas. Default: those in the index.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def ls(path: Path, start: int, limit: int, fields: str | None, as_json: bool) -> None:
    """List samples of PATH: numbers, labels and texts, without touching the payload."""
    from mmds.listing import rows_of

    reader = mmds.open(path)
    names = (
        fields.split(",")
        if fields
        else [f.name for f in reader.fields if not f.is_payload] or list(reader.fields.names)
    )
    rows = range(len(reader))[start:][: limit or None]
    if as_json:
        for row in rows_of(reader, rows, names):
            click.echo(json.dumps(row))
        return
    from mmds.terminal import print_table, value_text

    print_table(
        ["sample", *names],
        [[value_text(value) for value in row.values()] for row in rows_of(reader, rows, names)],
        right=(0,),
    )
    if rows and rows[-1] + 1 < len(reader) and sys.stdout.isatty():
        click.echo(f"… of {len(reader):,} samples; --start {rows[-1] + 1} shows more")


@main.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a number
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("index", type=int)
@click.option("--field", help="Only this field.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the picture (or the field's bytes) to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(path: Path, index: int, field: str | None, output: Path | None, as_json: bool) -> None:
    """Show sample INDEX of PATH; a picture is drawn in the terminal, or written to a file with -o."""
    from mmds.listing import show_sample

    show_sample(mmds.open(path), index, field, output, as_json)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-j", "--num-workers", type=click.IntRange(1), help="Threads. Default: one per core.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(path: Path, num_workers: int | None, no_progress: bool, as_json: bool) -> None:
    """Check every byte of PATH; name the blocks, samples and fields that are damaged. Exit code 1 if any is."""
    from mmds.converters.stores import find_store
    from mmds.errors import printable
    from mmds.terminal import progress, size

    store = find_store(path)
    if store is not None:
        raise click.ClickException(f"{printable(path)} is {store.name}, which has no hashes; verify checks .mmds files")
    with progress("verifying", in_bytes=True, shown=not no_progress) as update:
        found = mmds.verify(path, num_workers=num_workers, progress=update)
    if as_json:
        damages = [{"reason": d.reason, "samples": d.samples, "fields": d.fields} for d in found.damages]
        _print_json({"path": str(path), "samples": found.samples, "bytes": found.bytes, "damages": damages})
    elif found:
        click.echo(f"undamaged: {found.samples:,} samples, {size(found.bytes)}")
    else:
        for damage in found.damages:
            click.echo(str(damage), err=True)
        click.echo(f"damaged: {len(found.damages)} findings", err=True)
    if not found:
        sys.exit(1)


class _WithCommand(click.Command):
    """A command whose arguments after `--` are somebody else's, kept in `ctx.obj`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.obj = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@main.command(cls=_WithCommand)
@click.argument("pid", type=click.IntRange(1), required=False, metavar="[PID] [-- COMMAND...]")
@click.option(
    "--interval", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--csv", type=click.Path(path_type=Path, dir_okay=False), help="Write every look to this file, as it is taken."
)
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw memory over time to this file.")
@click.option("--once", is_flag=True, help="Look once, and print a table.")
@click.option("--live", is_flag=True, help="Draw a live table while COMMAND runs, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def memory(ctx: click.Context, /, pid: int | None, once: bool, live: bool, **options: Any) -> None:
    """Watch the memory of process PID, or of COMMAND, and of all that it starts; say if private memory or page cache grows.

    COMMAND has the terminal to itself; the result follows on stderr. Its exit code is passed on.
    """
    from mmds.memorycommand import look_once, run_command, watch_process

    command = ctx.obj
    if (pid is None) == (not command):
        raise click.UsageError("expected either PID or -- COMMAND, such as: mmds memory -- python train.py")
    if once and (pid is None or options["csv"] or options["png"]):
        raise click.UsageError("--once looks at PID once; it has no COMMAND, and nothing to write over time")
    if pid is None:
        sys.exit(run_command(command, live=live, **options))
    elif once:
        look_once(pid, options["as_json"])
    else:
        watch_process(pid, **options)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
