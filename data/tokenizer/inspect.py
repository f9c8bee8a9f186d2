"""How well a tokenizer fits text: what it costs by source, what it lacks, which of its pieces nobody uses.

Totals of a dataset that it made itself are exact, from `dataset.json`. The rest comes from samples of bounded size:
2 MB of documents a dataset or file, spread evenly, and counts of at most 50 M tokens, 0.3 s of bincount over mapped
shards.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import FILE, Dataset, load_dataset
from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer

_SAMPLE_BYTES = 2_000_000
_SHARDS = 16
_COUNTED_TOKENS = 50_000_000
_LISTED = 10
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]|\w+")


@dataclass
class _Cost:
    """What one source's text takes; `sampled` documents stand for the rest, `bytes` and `tokens` may be of all."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    characters: int = 0
    words: int = 0
    sampled_bytes: int = 0
    sampled_tokens: int = 0

    def json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": _per(self.bytes, self.tokens),
            "characters_per_token": _per(self.characters, self.sampled_tokens),
            "tokens_per_word": _per(self.sampled_tokens, self.words),
            "sampled_bytes": self.sampled_bytes,
        }


@dataclass
class _Seen:
    """What all samples say together."""

    characters: set[str] = field(default_factory=set)
    costs: dict[str, _Cost] = field(default_factory=dict)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    of_tokens: int = 0
    """Tokens that the counts are a sample of."""
    own_characters: int = 0
    documents: int = 0
    changed: int = 0


def inspect(tokenizer: Tokenizer, on: Sequence[Path]) -> dict[str, Any]:
    """Figures on a tokenizer and the text in `on`, datasets or UTF-8 files; plain values, ready for JSON.

    Raises:
        UserError: a dataset that can't be opened, a file that is not UTF-8 text.
    """
    seen = _Seen(_characters(tokenizer), counts=np.zeros(tokenizer.vocab_size, np.int64))
    for path in on:
        if path.is_dir():
            _look_at_dataset(tokenizer, load_dataset(path), seen)
        else:
            _look_at_file(tokenizer, path, seen)
    return {
        "tokenizer": _description(tokenizer),
        "longest": _longest(tokenizer),
        **(_usage(tokenizer, seen) if on else {}),
    }


def report(said: dict[str, Any]) -> str:
    """The figures of `inspect` as a page of text."""
    about = said["tokenizer"]
    lines = [
        f"{about['make']} {about['fingerprint'][:12]}: {about['pieces']:,} pieces, {about['padded']:,} rows in a "
        f"model; {about['control_pieces']} control pieces, {about['partial_pieces']} that hold a part of a character",
        "control: " + ", ".join(f"{held['piece']} {held['id']}" for held in about["control"][:_LISTED])
        + (f" and {about['control_pieces'] - _LISTED} more" if about["control_pieces"] > _LISTED else ""),
        f"it {', '.join(about['losses'])}" if about["losses"] else "every text comes back byte for byte",
    ]  # fmt: skip
    if "sources" in said:
        lines += [
            "",
            f"{'source':<28}{'bytes':>16}{'tokens':>16}{'bytes/token':>13}{'chars/token':>13}{'tokens/word':>13}",
        ]
        for name, cost in said["sources"].items():
            rates = (cost[rate] for rate in ("bytes_per_token", "characters_per_token", "tokens_per_word"))
            shown = "".join(f"{'n/a':>13}" if rate is None else f"{rate:>13.3f}" for rate in rates)
            lines.append(f"{name:<28}{cost['bytes']:>16,}{cost['tokens']:>16,}{shown}")
        coverage, trips = said["coverage"], said["round_trip"]
        lines += [
            "",
            f"coverage: {coverage['characters']:.3%} of the characters have a piece of their own; "
            f"{coverage['partial_tokens']:.3%} of the tokens are parts of a character",
            f"round trip: {trips['changed']} of {trips['documents']} sampled documents come back changed",
            f"unused: {said['unused']:,} pieces in {said['counted_tokens']:,} tokens"
            + (f" (of {said['all_tokens']:,})" if said["counted_tokens"] < said["all_tokens"] else ""),
            "rarest: " + ", ".join(f"{held['text']!r} {held['count']:,}" for held in said["rarest"]),
        ]
    return "\n".join([*lines, "longest: " + ", ".join(f"{held['text']!r} {held['bytes']}" for held in said["longest"])])


def _description(tokenizer: Tokenizer) -> dict[str, Any]:
    control = np.flatnonzero(tokenizer.is_control).tolist()
    return {
        "make": tokenizer.make,
        "fingerprint": tokenizer.fingerprint,
        "pieces": tokenizer.vocab_size,
        "padded": tokenizer.padded_vocab_size,
        "control_pieces": len(control),
        "control": [{"id": number, "piece": tokenizer.pieces[number]} for number in control],
        "partial_pieces": int(_partial(tokenizer).sum()),
        "losses": list(tokenizer.losses),
    }


def _usage(tokenizer: Tokenizer, seen: _Seen) -> dict[str, Any]:
    counts = seen.counts
    bytes_ = np.array([bool(_BYTE.fullmatch(piece)) for piece in tokenizer.pieces])
    ordinary = ~tokenizer.is_control & ~_partial(tokenizer) & ~bytes_ & (tokenizer.piece_bytes > 0)
    used = np.flatnonzero(ordinary & (counts > 0))
    rarest = used[np.lexsort((used, counts[used]))][:_LISTED].tolist()
    characters = sum(cost.characters for cost in seen.costs.values())
    return {
        "sources": {name: cost.json() for name, cost in sorted(seen.costs.items())},
        "coverage": {
            "characters": seen.own_characters / max(1, characters),
            "partial_tokens": float(counts[_partial(tokenizer)].sum() / max(1, counts.sum())),
        },
        "round_trip": {"documents": seen.documents, "changed": seen.changed},
        "unused": int((ordinary & (counts == 0)).sum()),
        "counted_tokens": int(counts.sum()),
        "all_tokens": seen.of_tokens,
        "rarest": [
            {"id": number, "text": _shown(tokenizer, number), "count": int(counts[number])} for number in rarest
        ],
    }


def _longest(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    order = np.argsort(-tokenizer.piece_bytes, kind="stable")[:_LISTED].tolist()
    return [
        {"id": number, "text": _shown(tokenizer, number), "bytes": int(tokenizer.piece_bytes[number])}
        for number in order
    ]


def _per(amount: int, each: int) -> float | None:
    return round(amount / each, 4) if each else None


def _shown(tokenizer: Tokenizer, number: int) -> str:
    return tokenizer.spellings[number].decode("utf-8", "replace")


def _partial(tokenizer: Tokenizer) -> np.ndarray:
    """Which pieces hold bytes that are no whole characters (bool, [vocab_size])."""
    return np.array(["\ufffd" in held.decode("utf-8", "replace") for held in tokenizer.spellings])


def _characters(tokenizer: Tokenizer) -> set[str]:
    """The characters that a piece stands for by itself."""
    texts = (held.decode("utf-8", "replace") for held in tokenizer.spellings if 0 < len(held) <= 4)
    return {text for text in texts if len(text) == 1 and text != "\ufffd"}


def _look_at_dataset(tokenizer: Tokenizer, dataset: Dataset, seen: _Seen) -> None:
    own = dataset.info["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    for source, text in _documents(dataset):
        _take(tokenizer, f"{dataset.name}/{source}", text, seen, counted=not own)
    if not own:
        return
    for source, said in dataset.info["sources"].items():
        cost = seen.costs.setdefault(f"{dataset.name}/{source}", _Cost())
        cost.documents, cost.bytes, cost.tokens = said["documents"], said["text_bytes"], said["tokens"]
    index = dataset.index("train")
    seen.of_tokens += index.tokens
    share = min(1.0, _COUNTED_TOKENS / max(1, index.tokens))
    for number, shard in enumerate(index.shards):
        tokens = dataset.shard(index, number).tokens(0, int(shard.tokens * share))
        seen.counts += np.bincount(tokens, minlength=tokenizer.vocab_size)


def _look_at_file(tokenizer: Tokenizer, path: Path, seen: _Seen) -> None:
    try:
        with path.open("rb") as file:
            content = file.read(_SAMPLE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    cut = len(content) > _SAMPLE_BYTES
    try:
        text = (content.rsplit(b"\n", 1)[0] if cut and b"\n" in content else content).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02X}") from None
    _take(tokenizer, path.name, text, seen, counted=True)


def _take(tokenizer: Tokenizer, name: str, text: str, seen: _Seen, counted: bool) -> None:
    ids = tokenizer.encode(text)
    seen.documents += 1
    seen.changed += tokenizer.decode(ids) != text
    seen.own_characters += sum(map(seen.characters.__contains__, text))
    cost = seen.costs.setdefault(name, _Cost())
    size = len(text.encode())
    cost.documents += 1
    cost.bytes += size
    cost.tokens += len(ids)
    cost.characters += len(text)
    cost.words += sum(1 for _ in _WORDS.finditer(text))
    cost.sampled_bytes += size
    cost.sampled_tokens += len(ids)
    if counted:
        seen.counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        seen.of_tokens += len(ids)


def _documents(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """(source, text) of documents spread evenly over `train`, 2 MB at most, but one of each shard that is looked at."""
    from pyarrow import parquet

    index, tokenizer = dataset.index("train"), dataset.tokenizer()
    numbers = np.unique(np.linspace(0, len(index.shards) - 1, min(_SHARDS, len(index.shards))).astype(int))
    for number in numbers.tolist():
        shard = index.shards[number]
        room = _SAMPLE_BYTES // len(numbers)
        path = dataset.file(f"{shard.url.removesuffix('.tar')}.docs.parquet")
        table = parquet.read_table(path, columns=["source", "start", "tokens", "bytes"])
        wanted = max(1, min(table.num_rows, table.num_rows * room // max(1, shard.text_bytes)))
        mapped = dataset.shard(index, number)
        for place in np.unique(np.linspace(0, table.num_rows - 1, wanted).astype(int)).tolist():
            row = {name: table[name][place].as_py() for name in ("source", "start", "tokens", "bytes")}
            if room < row["bytes"] < shard.text_bytes and wanted > 1:
                continue  # one book would be the whole sample
            yield row["source"], tokenizer.decode(mapped.tokens(row["start"], row["start"] + row["tokens"]))


def text_to_look_at(path: Path, on: Sequence[Path]) -> list[Path]:
    """Where figures come from: `on`, or else the dataset that `path` itself is, or nowhere."""
    return list(on) or ([path] if (path / FILE).is_file() else [])
