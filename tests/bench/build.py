"""A build's stages against datatrove's equivalents: the same English documents, one process each, processor seconds.

Rules: Gopher's repetition and quality rules and C4's lines, ours with the preset `web`. Near copies: MinHash of 16
bands of 8 and 5 words, from text to the list of what is dropped. Tokens: the same tokenizer, ours by SentencePiece,
datatrove's by its tokenizer.json. The whole build of ours beside the sum of theirs also writes shards, indexes,
document tables and digests.
"""

import gzip
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.build.build import build
from data.clean.document import clean
from data.clean.rules import Clean
from data.dedup.minhash import band_keys
from data.recipe import DatasetRecipe, Dedup, Source, Split, TokenizerTraining
from data.tokenizer.tokenizer import Tokenizer
from data.tokenizer.training import train
from tests.bench import yardsticks
from tests.bench.loader_corpus import CORPORA, TEXTS

BYTES = 2_000_000


def main() -> None:
    """Print megabytes a processor second of each stage, and how many times faster ours is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _documents(folder / "documents.jsonl")
        size = sum(len(text.encode()) for text in texts)
        tokenizer = train(texts, 16384)
        tokenizer.save(folder / "tokenizer")
        ours = _ours(texts, tokenizer, folder)
        theirs = _theirs(folder)
    print(f"{size:,} bytes in {len(texts)} documents, MB a processor second")
    print(f"{'stage':<14}{'ours':>8}{'datatrove':>11}{'ratio':>8}")
    for stage, seconds in ours.items():
        other = theirs[stage] if stage in theirs else sum(theirs.values())
        print(f"{stage:<14}{size / seconds / 1e6:>8.2f}{size / other / 1e6:>11.2f}{other / seconds:>8.1f}")


def _documents(path: Path) -> list[str]:
    texts: list[str] = []
    with gzip.open(CORPORA / TEXTS[0], "rt", encoding="utf-8") as lines, path.open("w") as file:
        for line in lines:
            texts.append(json.loads(line)["text"])
            file.write(line)
            if sum(map(len, texts)) > BYTES:
                break
    return texts


def _ours(texts: list[str], tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    rules = Clean(preset="web")
    recipe = DatasetRecipe(
        name="bench", sources=(Source(kind="jsonl", path=str(folder / "documents.jsonl")),), workers=1, clean=rules,
        tokenizer=TokenizerTraining(reuse=folder / "tokenizer"), split=Split(valid=0.0),
    )  # fmt: skip
    unclean = recipe.model_copy(update={"clean": Clean(preset="off")})
    tokenizer.encode("warm")
    return {
        "clean": _seconds(lambda: [clean(text, rules) for text in texts]),
        "near copies": _seconds(lambda: _near(texts)),
        "tokenize": _seconds(lambda: tokenizer.encode_many(texts)),
        "whole build": _seconds(lambda: [clean(text, rules) for text in texts])
        + _seconds(lambda: build(unclean, folder / "built")),
    }


def _near(texts: list[str]) -> None:
    """Band keys, and whom each document shares one with, as a sort finds them."""
    for keys in band_keys(texts, Dedup()).T:
        np.unique(keys, return_inverse=True)


def _theirs(folder: Path) -> dict[str, float]:
    python = yardsticks.python_with(yardsticks.PREPARATION, alone=True)
    script = Path(__file__).with_name("build_by_datatrove.py")
    done = subprocess.run(
        [python, script, folder / "documents.jsonl", folder / "tokenizer" / "tokenizer.json", folder / "theirs"],
        check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def _seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


if __name__ == "__main__":
    main()
