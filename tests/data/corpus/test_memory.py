"""Memory doesn't grow with the corpus, and a document of 100 MB takes a few times that: peaks of whole processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.corpus.conftest import PACKED, SUFFIX, TABLES, page, response

_READ = """
import json, re, sys
from pathlib import Path

from data.corpus import documents
from data.corpus.source import Source

peaks = []
for settings in json.loads(sys.argv[1]):
    size = sum(document.bytes for document in documents([Source(**settings)]))
    # Not getrusage: its peak is also that of the process which started this one.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    peaks.append([size, peak * 1024])
print(json.dumps(peaks))
"""
SMALL, LARGE = 3_000_000, 30_000_000


def peaks(*sources: dict) -> list[list[int]]:
    """[bytes of text, peak of memory so far] after reading each source, in one process of its own."""
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    said = subprocess.run(
        [sys.executable, "-c", _READ, json.dumps(sources)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(said.stdout)


def written(folder: Path, kind: str, packed: str, size: int) -> dict:
    texts = [f"{number} some words, again and again\n" * 300 for number in range(size // 10_000)]
    if kind == "warc":
        content = b"".join(response(f"https://a/{n}", page(text), n) for n, text in enumerate(texts))
    elif kind == "text":
        content = "".join(texts).encode()
    else:
        content = TABLES[kind](texts)
    path = folder / f"{size}.{SUFFIX.get(kind, kind)}{packed}"
    path.write_bytes(PACKED[packed](content))
    return {"kind": kind, "path": str(path), **({"quoted": True} if kind == "tsv" else {})}


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("jsonl", ""), ("jsonl", ".gz"), ("jsonl", ".zst"), ("csv", ""), ("parquet", ""), ("webdataset", ""),
     ("text", ".zst"), ("warc", ".gz")],
)  # fmt: skip
def test_memory_does_not_grow_with_the_corpus(kind, packed, tmp_path):
    small, large = peaks(*(written(tmp_path, kind, packed, size) for size in (SMALL, LARGE)))
    assert large[0] > 8 * small[0]
    assert large[1] - small[1] < LARGE / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "folder", "parquet"])
def test_a_document_of_a_hundred_megabytes_passes_in_a_few_times_its_size(kind, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    text = "a line of text\n" * 6_700_000
    (folder / f"x.{kind}").write_bytes(TABLES[kind]([text]) if kind in TABLES else text.encode())
    (tmp_path / "y").write_text("nothing")
    (_, before), (size, after) = peaks(
        {"kind": "text", "path": str(tmp_path / "y")}, {"kind": kind, "path": str(folder)}
    )
    assert size == len(text) > 100_000_000
    assert after - before < 6 * size
    ((size, after),) = peaks({"kind": kind, "path": str(folder), "max_document_bytes": 1_000_000})
    assert size > 100_000_000
    if kind != "parquet":  # its cells are read whole
        assert after - before < size / 2
