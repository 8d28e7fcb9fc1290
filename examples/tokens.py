"""Texts -> tokens, for training a language model.

    python -m examples.tokens texts tokens.mmds

Each text becomes one document: its tokens, and a separator. In the file they lie one after the other without gaps, because
tokens are the only payload and aligned to their own size. So training needs no documents; see `examples.blocks`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import mmds

SEPARATOR = "<|endoftext|>"  # ends every document
VOCABULARY = 2000  # at most 65,536: tokens are uint16
DOCUMENTS = {"tokens": mmds.Array("uint16", (None,), align=2), "path": mmds.Text(column=True)}

Sample = dict[str, Any]


def train(texts: Iterable[str], file: Path) -> None:
    """Train a byte-level BPE tokenizer, for which no text is unknown and which gives back every text exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(file))


@cache
def load(file: Path) -> Tokenizer:
    """Return a tokenizer that was trained; each worker loads it once."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # a separator in a text is text
    return tokenizer


@dataclass(frozen=True)
class Encode:
    """The function from text to document. It pickles as the path of the tokenizer's file."""

    tokenizer: Path

    def __call__(self, sample: Sample) -> Sample:
        """Return the tokens of a text, then the separator."""
        tokenizer = load(self.tokenizer)
        tokens = [*tokenizer.encode(sample["text"]).ids, tokenizer.token_to_id(SEPARATOR)]
        return {"tokens": np.array(tokens, "uint16"), "path": sample["path"]}


def main() -> None:
    """Train a tokenizer on a folder of texts, and encode them with it."""
    parser = argparse.ArgumentParser(description="Encode a folder of texts as tokens.")
    parser.add_argument("texts", type=Path)
    parser.add_argument("tokens", type=Path, help="dataset to write; the tokenizer goes beside it, as .json")
    parser.add_argument("-j", "--num-workers", type=int, default=2, help="processes (default: 2)")
    given = parser.parse_args()
    tokenizer = given.tokens.with_suffix(".json")
    train((path.read_text("utf-8") for path in sorted(given.texts.rglob("*.txt"))), tokenizer)
    mmds.convert(
        given.texts,
        given.tokens,
        source_format="text",
        map=Encode(tokenizer),
        output_fields=DOCUMENTS,
        num_workers=given.num_workers,
    )
    documents = mmds.open(given.tokens)
    print(f"{given.tokens}: {len(documents)} documents, {len(documents.flat('tokens')):,} tokens")


if __name__ == "__main__":
    main()
