"""Real text for tests: from the folder of corpora where there is one, else the running Python's own documentation."""

import inspect
import json
import os
import pydoc_data.topics
from collections.abc import Iterator
from gzip import open as gzip_open
from pathlib import Path

FOLDER = Path(os.environ.get("LUBAN_CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))


def texts(size: int) -> list[str]:
    """Documents of English prose, about `size` bytes together."""
    found, total = [], 0
    for text in _documents():
        found.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return found


def _documents() -> Iterator[str]:
    tech = FOLDER / "pretrain_en_tech" / "en_tech.jsonl.gz"
    if tech.exists():
        with gzip_open(tech, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
        return
    for topic in pydoc_data.topics.topics.values():
        yield inspect.cleandoc(topic)
