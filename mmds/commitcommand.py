"""`mmds commit`: completing datasets that were converted by many ranks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

import mmds
from mmds.options import path_or_url


@click.command()
@click.argument("paths", metavar="PATH...", type=path_or_url, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def commit(paths: tuple[Path | str, ...], as_json: bool) -> None:
    """Complete the datasets at PATH..., which `mmds convert --rank R --world-size W` has written, when all ranks are done.

    Until then they cannot be opened. If a rank or one of its shards is missing, says which, and changes nothing.
    """
    from mmds.errors import printable

    for path in paths:
        done = mmds.commit(path)
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(done)))
            continue
        click.echo(f"{printable(done.where, 4096)}: {done.samples:,} samples in {done.shards:,} shards")
        if done.errors:
            name, reason = done.errors[0]
            click.echo(
                f"left out: {len(done.errors):,} samples, the first: {printable(name)}: {printable(reason)}", err=True
            )
