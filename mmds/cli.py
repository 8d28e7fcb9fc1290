"""The `mmds` command. Nothing but click is imported until a command runs, so that `mmds --help` answers at once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import click

import mmds
from mmds.commitcommand import commit
from mmds.convertcommand import convert
from mmds.copycommands import merge, select, split
from mmds.options import local_path, path_or_url, size
from mmds.uploadcommand import upload
from mmds.verifycommand import verify


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


main.add_command(convert)
main.add_command(commit)
main.add_command(select)
main.add_command(merge)
main.add_command(split)
main.add_command(verify)
main.add_command(upload)


@main.command()
@click.argument("path", type=path_or_url)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: Path | str, as_json: bool) -> None:
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
@click.argument("path", type=path_or_url)
@click.option("--start", type=int, default=0, show_default=True, help="The first sample; negative counts from the end.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="How many samples; 0 for all.")
@click.option("--fields", help="Names of the fields to show, with commas. Default: those in the index.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def ls(path: Path | str, start: int, limit: int, fields: str | None, as_json: bool) -> None:
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
@click.argument("path", type=path_or_url)
@click.argument("index", metavar="INDEX|KEY")
@click.option("--field", help="Only this field.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the picture (or the field's bytes) to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(path: Path | str, index: str, field: str | None, output: Path | None, as_json: bool) -> None:
    """Show sample INDEX of PATH, or the one with this KEY; a picture is drawn in the terminal, or written to a file with -o."""
    from mmds.listing import show_sample

    show_sample(mmds.open(path), index, field, output, as_json)


@main.command("add-column")
@click.argument("path", type=local_path)
@click.argument("name")
@click.argument("values", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--classes", metavar="NAMES", help="All class names, with commas: VALUES are labels.")
@click.option("--replace", is_flag=True, help="NAME may be a field that samples have already.")
def add_column(path: Path, name: str, values: Path, classes: str | None, replace: bool) -> None:
    """Give each sample of PATH, a folder of shards, the field NAME.

    VALUES has one for each sample: an array (.npy), or on each line a text (.txt) or a JSON value (.jsonl).
    """
    from mmds.addcolumn import read_values

    found, kind = read_values(values, classes.split(",") if classes else None)
    mmds.add_column(path, name, found, kind=kind, replace=replace)
    click.echo(f"{len(found):,} values")


@main.command()
@click.argument("source", type=path_or_url)
@click.argument("destination", type=local_path)
@click.option("--to", "format", metavar="FORMAT", help="folder, tar, or a store. Default: by the suffix, or folder.")
@click.option("--fields", metavar="NAMES", help="Only these fields, with commas.")
@click.option("--shard-size", type=size, metavar="SIZE", help="Write several tar files of about this size.")
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def export(source: Path | str, destination: Path, fields: str | None, no_progress: bool, **options: Any) -> None:
    """Write SOURCE back to a folder of the files that it was made of, to tar shards, or to another store."""
    from mmds.errors import printable
    from mmds.terminal import progress

    with progress("exporting", in_bytes=False, shown=not no_progress) as update:
        names = fields.split(",") if fields else None
        written = mmds.export(source, destination, fields=names, progress=update, **options)
    for path in written:
        click.echo(printable(path, 4096))


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
