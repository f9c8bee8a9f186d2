"""Small real corpora: slices of the standard library, and files of /corpora where the machine has them."""

import gzip
import json
import os
import random
import shutil
import sysconfig
from pathlib import Path

import pytest

from data.build.build import build
from data.recipe import Clean, DatasetRecipe, Dedup, Source, Split, TokenizerTraining

STDLIB = Path(sysconfig.get_path("stdlib"))
CORPORA = Path(os.environ.get("LUBAN_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))
COMMON_CHINESE = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 1500))


def english(seed: int, words: int) -> str:
    """Sentences of made-up words; different seeds have nothing in common but the words."""
    draw = random.Random(seed)
    stock = [
        "".join(draw.choice("aeioubcdfglmnprst") for _ in range(length))
        for length in (2, 3, 4, 5, 6, 7)
        for _ in "x" * 200
    ]
    said = [draw.choice(stock) for _ in range(words)]
    return "\n".join(" ".join(said[at : at + 12]) + "." for at in range(0, words, 12))


def chinese(seed: int, characters: int) -> str:
    """Lines of common characters."""
    draw = random.Random(seed)
    said = [draw.choice(COMMON_CHINESE) for _ in range(characters)]
    return "。\n".join("".join(said[at : at + 20]) for at in range(0, characters, 20))


def corpus_texts(name: str, limit: int) -> list[str]:
    """The first texts of a JSON lines file in the corpora folder; none where it is absent."""
    path = CORPORA / name
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(limit), strict=False)]


@pytest.fixture(scope="session")
def code_texts() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(STDLIB.glob("asyncio/*.py"))]


@pytest.fixture(scope="session")
def english_texts() -> list[str]:
    return corpus_texts("pretrain_en_tech/en_tech.jsonl.gz", 60) or [english(seed, 2000) for seed in range(20)]


@pytest.fixture(scope="session")
def chinese_texts() -> list[str]:
    return corpus_texts("pretrain_zh_poetry/poetry.jsonl.gz", 600) or [chinese(seed, 400) for seed in range(60)]


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory) -> Path:
    """Two packages of the standard library, some 80 files and 1.5 MB, with one file that is not text."""
    folder = tmp_path_factory.mktemp("sources") / "code"
    for package in ("asyncio", "email", "json", "importlib"):
        shutil.copytree(STDLIB / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "picture.py").write_bytes(b"\x89PNG\0\0")
    return folder


@pytest.fixture(scope="session")
def small_recipe(source_folder) -> DatasetRecipe:
    return DatasetRecipe(
        name="small",
        sources=(Source(kind="folder", path=source_folder, glob=("**/*.py",), licence="PSF-2.0"),),
        clean=Clean(),
        dedup=Dedup(),
        split=Split(valid=0.1, heldout=0.2),
        tokenizer=TokenizerTraining(vocab_size=1024),
        shard_tokens=60_000,
        workers=1,
    )


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory, small_recipe):
    return build(small_recipe, tmp_path_factory.mktemp("datasets") / "small")
