"""`mmds upload`: a finished dataset to object storage, on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

import mmds
from mmds.options import local_path


@click.command()
@click.argument("source", type=local_path)
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
def upload(source: Path, url: str, as_json: bool, no_progress: bool) -> None:
    """Put SOURCE, a finished .mmds file or folder of shards, at URL, such as s3://bucket/train.mmds.

    Nothing that is there is replaced, and what was interrupted continues when it is run again. A URL that ends with a slash is
    where SOURCE goes under its own name.
    """
    from mmds.errors import printable
    from mmds.terminal import progress, size

    with progress("uploading", in_bytes=True, shown=not no_progress) as update:
        done = mmds.upload(source, url, progress=update)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return
    there = f", of which {done.files - done.sent:,} were there already" if done.sent < done.files else ""
    click.echo(f"{printable(done.url, 4096)}: {done.files:,} file{'s' * (done.files != 1)}, {size(done.bytes)}{there}")
