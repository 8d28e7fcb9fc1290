"""`mmds verify`: what of a dataset is damaged, and saving the rest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mmds
from mmds.options import local_path

if TYPE_CHECKING:
    from mmds.integrity import Damage
    from mmds.repairing import Repair


@click.command()
@click.argument("path", type=local_path)
@click.option("-j", "--num-workers", type=click.IntRange(1), help="Threads. Default: one per core.")
@click.option(
    "--repair",
    "destination",
    type=local_path,
    metavar="DESTINATION",
    help="If PATH is damaged, or the .tmp file that a killed writer left, write what is whole to this .mmds file, and what "
    "is lost to DESTINATION.lost.jsonl.",
)
@click.option("--doubtful", is_flag=True, help="With --repair: keep damaged samples that can be read, too.")
@click.option("--overwrite", is_flag=True, help="With --repair: replace DESTINATION if it exists.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    path: Path,
    num_workers: int | None,
    destination: Path | None,
    doubtful: bool,
    overwrite: bool,
    no_progress: bool,
    as_json: bool,
) -> None:
    """Check every byte of PATH; name the blocks, samples and fields that are damaged. Exit code 1 if any is."""
    from mmds.converters.stores import find_store
    from mmds.errors import printable
    from mmds.terminal import progress, size

    if destination is None and (doubtful or overwrite):
        raise click.UsageError("--doubtful and --overwrite belong to --repair DESTINATION")
    store = find_store(path)
    if store is not None:
        raise click.ClickException(f"{printable(path)} is {store.name}, which has no hashes; verify checks .mmds files")
    with progress("verifying", in_bytes=True, shown=not no_progress) as update:
        found = mmds.verify(path, num_workers=num_workers, progress=update)
    facts: dict[str, Any] = {"path": str(path), "samples": found.samples, "bytes": found.bytes}
    facts |= {"damages": list(map(_damage, found.damages)), "notes": found.notes}
    if not as_json:
        if found:
            click.echo(f"undamaged: {found.samples:,} samples, {size(found.bytes)}")
        else:
            for damage in found.damages:
                click.echo(str(damage), err=True)
            click.echo(f"damaged: {len(found.damages)} findings", err=True)
        for note in found.notes:
            click.echo(note, err=True)
    if destination is not None and not found:
        with progress("saving", in_bytes=True, shown=not no_progress) as update:
            saved = mmds.repair(path, destination, doubtful=doubtful, overwrite=overwrite, progress=update)
        facts["repair"] = _repair(saved)
        if not as_json:
            click.echo(f"saved: {saved.samples:,} samples, in {printable(saved.path, 4096)}")
            if saved.report is not None:
                click.echo(f"lost: {saved.samples_lost:,} samples, listed in {printable(saved.report, 4096)}")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    if not found:
        sys.exit(1)


def _damage(damage: Damage) -> dict[str, Any]:
    return {"reason": damage.reason, "samples": damage.samples, "fields": damage.fields}


def _repair(saved: Repair) -> dict[str, Any]:
    report = None if saved.report is None else str(saved.report)
    facts = {"path": str(saved.path), "samples": saved.samples, "samples_lost": saved.samples_lost, "report": report}
    return {**facts, "lost": list(map(_damage, saved.lost))}
