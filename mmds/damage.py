"""What of a dataset is damaged, and which samples and fields a damaged block can affect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import printable
from mmds.format import BLOCK, DATA_START, KEY_ROLES, Section, constant_layout


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong, and the samples (a half-open range of numbers) and fields that it can affect."""

    reason: str
    samples: tuple[int, int] | None = None
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = self.reason
        if self.samples is not None:
            first, last = self.samples[0], self.samples[1] - 1
            text += f": sample {first}" if first == last else f": samples {first} to {last}"
        if self.fields:
            text += f", field{'s' * (len(self.fields) > 1)} {printable(', '.join(self.fields), 1000)}"
        return text

    def within(self, name: str, start: int) -> Damage:
        """Return this damage of a file as one of a dataset in which the file's samples begin at `start`."""
        samples = None if self.samples is None else (self.samples[0] + start, self.samples[1] + start)
        return Damage(name + self.reason, samples, self.fields)


def affected(file: DataFile, block: int, reason: str, bad: Iterable[int]) -> Iterator[Damage]:
    """Yield what a bad block holds: a part of the header, samples of the data, rows of the index."""
    footer = file.footer
    start, end = block * BLOCK, min((block + 1) * BLOCK, footer.sections[-1].offset)
    where = f"block {block} (bytes {start} to {end}) {reason}"
    known = False
    if start < footer.data_end and end > DATA_START and footer.schema.payload:
        known = True
        yield _affected_data(file, where, max(start, DATA_START), min(end, footer.data_end), bad)
    for section in footer.sections[:-1]:
        first, last = max(start, section.data), min(end, section.end)
        if first < last:
            known = True
            yield _affected_rows(file, where, section, first - section.data, last - section.data, bad)
    if not known:
        yield Damage(f"{where}; it holds only headers and padding")


def _affected_data(file: DataFile, where: str, start: int, end: int, bad: Iterable[int]) -> Damage:
    payload = [file.footer.schema.fields[position].name for position in file.footer.schema.payload]
    constant = constant_layout(file.footer.schema)
    if constant is not None and constant[0]:
        stride = constant[0]
        samples = ((start - DATA_START) // stride, -(-(end - DATA_START) // stride))
        return Damage(where, samples, tuple(payload))
    found = _items(file, file.footer.section("ends"), start, end, bad)
    if found is None:
        return Damage(f"{where}, and so does the index of the data", (0, file.footer.n), tuple(payload))
    first, last = found
    samples = (first // len(payload), -(-last // len(payload)))
    hit = {payload[item % len(payload)] for item in range(first, min(last, first + len(payload)))}
    return Damage(where, samples, tuple(name for name in payload if name in hit))


def _items(file: DataFile, section: Section, start: int, end: int, bad: Iterable[int]) -> tuple[int, int] | None:
    """Return which items (half-open) have bytes from `start` to `end`, by an array of ends; None if that is damaged, too."""
    if any(section.data // BLOCK <= other <= (section.end - 1) // BLOCK for other in bad):
        return None
    ends = file.array(section)
    first = max(int(ends.searchsorted(np.uint64(start), "right")) - 1, 0)
    return first, max(int(ends.searchsorted(np.uint64(end), "left")), first + 1)


def _affected_rows(file: DataFile, where: str, section: Section, start: int, end: int, bad: Iterable[int]) -> Damage:
    schema, n = file.footer.schema, file.footer.n
    if section.field is None and not schema.payload:
        return Damage(f"{where} in the index of no data")
    positions = schema.payload if section.field is None else (section.field,)
    names = tuple(schema.fields[position].name for position in positions)
    if section.role in (
        "ends",
        "value_ends",
    ):  # one entry more than items: each is the end of one, and the start of the next
        per_sample = len(positions)
        samples = (max(start // 8 - 1, 0) // per_sample, min(-(-end // (8 * per_sample)), n))
    elif section.role == "values":
        found = _items(file, file.footer.section("value_ends", section.field), start, end, bad)
        return Damage(f"{where} in the values", found or (0, n), names)
    elif section.role in ("dictionary", *KEY_ROLES):
        part = "index of keys" if section.role in KEY_ROLES else section.role
        return Damage(f"{where} in the {part}", (0, n), names)
    else:
        size = section.nbytes // section.shape[0]
        samples = (start // size, -(-end // size))
    return Damage(f"{where} in the index", (min(samples[0], max(n - 1, 0)), samples[1]), names)
