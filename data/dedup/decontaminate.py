"""Documents that hold text of an evaluation set are dropped: they share a run of 13 words with it.

Runs of 13 words are what GPT-3 was checked by (Brown et al. 2020, appendix C). An evaluation text of fewer words, but
of 8 at least, is looked for whole; a shorter one can't be told from common speech and is counted. Where long documents
quote, `overlap` asks for a share of a document's words to lie in such runs, as Llama 2 measured it (Touvron et al.
2023, appendix A.6).

The sets' runs are sorted hashes in files that workers map: 8 bytes a run, made once and in bounded memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from data import corpus
from data.build.external import buckets
from data.clean.document import mend
from data.clean.rules import Clean
from data.dedup.ngrams import WORDS, run_hashes, word_hashes
from data.publish import published, write_json
from data.recipe import Decontaminate, Source

_ACCOUNT = "evaluation.json"
_RUNS = np.dtype([("key", "<u8")])
_EXPECTED = 1 << 20


@dataclass
class Looked:
    """One evaluation set, as documents are compared with it."""

    name: str
    texts: int = 0
    too_short: int = 0
    """Texts that aren't looked for."""
    runs: dict[int, int] = field(default_factory=dict)
    """Different runs by their words."""


@dataclass(frozen=True)
class Found:
    """What a document shares with an evaluation set."""

    name: str
    share: float
    """Of the document's words, those in shared runs."""
    text: str
    """The first shared run, as the document has it."""


def collect(rules: Decontaminate, clean: Clean, work: Path, memory: int) -> list[Looked]:
    """Write the runs of every evaluation set into `work`, unless they are there.

    Args:
        clean: changes that the documents go through, so that a mask in both is the same text.
        memory: bytes to work in.
    """
    account = work / _ACCOUNT
    if not account.exists():
        made = [_collect(number, source, rules, clean, work, memory) for number, source in enumerate(rules.sets)]
        write_json(account, {"sets": [asdict(looked) for looked in made]})
    return _sets(work)


def find(text: str, work: Path, overlap: float) -> Found | None:
    """The first evaluation set of which the text holds too much, or none."""
    words = word_hashes(text)
    hashes: dict[int, np.ndarray] = {}
    for number, looked in enumerate(_sets(work)):
        inside = np.zeros(len(words) + 1, np.int64)
        for width in looked.runs:
            if width not in hashes:
                hashes[width] = run_hashes(words, width)
            begins = np.flatnonzero(_among(hashes[width], _runs(work, number, width)))
            np.add.at(inside, begins, 1)
            np.add.at(inside, begins + width, -1)
        shared = np.cumsum(inside[:-1]) > 0
        if shared.any() and shared.mean() > overlap:
            return Found(looked.name, float(shared.mean()), _quote(text, shared))
    return None


def _collect(number: int, source: Source, rules: Decontaminate, clean: Clean, work: Path, memory: int) -> Looked:
    looked = Looked(source.label)
    found: dict[int, list[np.ndarray]] = {}
    with buckets(work, _RUNS, _EXPECTED, memory) as sorting:
        for text in _texts(source, clean):
            words = word_hashes(text)
            looked.texts += 1
            if len(words) >= rules.ngram:
                sorting.add(run_hashes(words, rules.ngram).view(_RUNS))
            elif len(words) >= min(rules.min_words, rules.ngram):
                found.setdefault(len(words), []).append(run_hashes(words, len(words)))
            else:
                looked.too_short += 1
        looked.runs[rules.ngram] = _write(_file(work, number, rules.ngram), (each["key"] for each in sorting.sorted()))
    for width, hashes in sorted(found.items()):
        looked.runs[width] = _write(_file(work, number, width), [np.sort(np.concatenate(hashes))])
    return looked


def _texts(source: Source, clean: Clean) -> Iterator[str]:
    for document in corpus.documents([source]):
        for text in document.texts():
            yield mend(text, clean)[0]


def _write(path: Path, ascending: Iterable[np.ndarray]) -> int:
    """Publish hashes, each once; how many there are."""
    count, last = 0, None
    with published(path) as temporary, temporary.open("wb") as file:
        for hashes in ascending:
            hashes = np.unique(hashes)
            hashes = hashes[1:] if len(hashes) and hashes[0] == last else hashes
            if len(hashes):
                count, last = count + len(hashes), hashes[-1]
                file.write(hashes.tobytes())
    return count


def _file(work: Path, number: int, width: int) -> Path:
    return work / f"evaluation-{number:03d}-{width:02d}.runs"


@lru_cache(maxsize=1)
def _sets(work: Path) -> list[Looked]:
    held = json.loads((work / _ACCOUNT).read_text("utf-8"))["sets"]
    return [Looked(**{**each, "runs": {int(width): n for width, n in each["runs"].items()}}) for each in held]


@lru_cache(maxsize=1024)
def _runs(work: Path, number: int, width: int) -> np.ndarray:
    path = _file(work, number, width)
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else np.zeros(0, np.uint64)


def _among(hashes: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which hashes are in the ascending ones (bool)."""
    if not len(ascending):
        return np.zeros(len(hashes), bool)
    return ascending[np.minimum(np.searchsorted(ascending, hashes), len(ascending) - 1)] == hashes


def _quote(text: str, shared: np.ndarray) -> str:
    """The first stretch of shared words, as the text has it."""
    first = int(np.argmax(shared))
    last = first + int(np.argmin(np.append(shared[first:], False)))
    spans = [match.span() for match in WORDS.finditer(text.lower())] if len(text.lower()) == len(text) else []
    return text[spans[first][0] : spans[last - 1][1]] if spans else ""
