"""A folder of sounds as a dataset: ``root/class/**/x.wav``, with the rules of `classfolder`.

Files are kept byte for byte. A sample is ``{"audio": ..., "label": ..., "path": ...}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mmds
from mmds.converters import Source
from mmds.converters.classfolder import Content, branches, decodes, folder_sources
from mmds.converters.extensions import SOUNDS
from mmds.converters.recordings import check_sound


def sources(path: Path, *, check: str = "quick", splits: bool | None = None) -> list[Source]:
    """Return the sources in the folder `path`: one, or one per split.

    `check` is "quick" (whole by its structure) or "decode" (all of every sound is decoded). `splits` says whether the
    root's folders are splits; None decides by their names.
    """
    decode = decodes(check)
    content = Content("audio", mmds.Audio(), Sound(decode), {"source": "audiofolder"}, cpu_bound=decode)
    return folder_sources(branches(path, SOUNDS, splits), content)


@dataclass(frozen=True)
class Sound:
    """The function from a file's bytes to the sound in the sample: the same bytes, checked."""

    decode: bool

    def __call__(self, data: bytes) -> bytes:
        """Return `data`, or raise `SourceError` if it is no whole sound."""
        check_sound(data, decode=self.decode)
        return data
