"""Blocks of tokens for training a language model, from one flat array of the tokens of all documents.

    loader = DataLoader(Blocks("tokens.mmds", length=128), batch_size=16, shuffle=True, num_workers=2)

The array is a view of the mapped file: it costs nothing to open, whatever the number of documents, and all workers share it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import mmds


class Blocks(Dataset[tuple[Tensor, Tensor]]):
    """Blocks of `length` tokens as (input, target), both int64; the target is one token ahead.

    Blocks follow each other through all documents: each token but the first is a target once, up to a rest that fills no
    block. ``DataLoader(Blocks(...), shuffle=True)`` takes them at random; another `offset` (0 to length - 1) in every epoch
    cuts them at other places.
    """

    def __init__(self, path: Path, length: int, offset: int = 0) -> None:
        self.path, self.length, self.offset = path, length, offset

    @cached_property
    def tokens(self) -> Any:
        """All tokens: uint16, shape (total,). Each process maps the file itself."""
        return mmds.open(self.path).flat("tokens")

    def __reduce__(self) -> Any:
        return Blocks, (self.path, self.length, self.offset)  # without the array, which would travel as a copy

    def __len__(self) -> int:
        return max(len(self.tokens) - 1 - self.offset, 0) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.offset + range(len(self))[index] * self.length
        block = torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))
        return block[:-1], block[1:]
