"""What is in a dataset, as text: counts, lengths, sources, what was dropped and why, and some of the documents."""

from pathlib import Path

import numpy as np

from data.account import account_lines
from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.shards import FIELDS, IN_LOSS, SPLITS

_BAR = 40
_SAMPLE_CHARACTERS = 300


def report(folder: Path | str, check: bool = False, samples: int = 2) -> str:
    """A page of text about the dataset in `folder`, or at a URL.

    Args:
        check: also re-read every shard against its digest.
        samples: how many documents of each split to show, spread evenly over it.

    Raises:
        UserError: no complete dataset there, or (with `check`) a damaged one, naming each damaged file.
    """
    dataset = load_dataset(folder)
    info = dataset.info
    lines = [
        f"{dataset.name} in {dataset.place}: {dataset.kind}, {info['documents']:,} documents, "
        f"{info['tokens']:,} tokens, {info['text_bytes']:,} bytes of text, {dataset.bytes_per_token:.3f} bytes a token",
        f"tokenizer {info['tokenizer']['fingerprint'][:12]}: {info['tokenizer']['vocab_size']:,} pieces, "
        f"{info['tokenizer']['padded_vocab_size']:,} rows in a model",
        "",
        *_split_lines(dataset),
        "",
        *_source_lines(dataset),
        "",
        *_stage_lines(dataset),
    ]
    for split in SPLITS:
        if dataset.index(split).documents:
            lines += ["", *_length_lines(dataset, split)]
    for split in SPLITS:
        lines += _sample_lines(dataset, split, samples)
    if check:
        if found := dataset.verify():
            raise UserError("\n".join([*found, "Copy the dataset again from where it was built, or rebuild it."]))
        lines += ["", "every shard has the bytes it was written with"]
    return "\n".join(lines)


def show(dataset: Dataset, tokens: np.ndarray) -> str:
    """Tokens as text on one line, control pieces by name, cut to 300 characters."""
    tokenizer = dataset.tokenizer()
    text = repr(tokenizer.decode(tokens, control=True).removesuffix(tokenizer.pieces[tokenizer.eos_id]))[1:-1]
    return text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."


def _split_lines(dataset: Dataset) -> list[str]:
    lines = [f"{'split':<9}{'shards':>8}{'documents':>12}{'tokens':>16}{'bytes':>16}  fingerprint"]
    for split, said in dataset.info["splits"].items():
        lines.append(
            f"{split:<9}{said['shards']:>8,}{said['documents']:>12,}{said['tokens']:>16,}{said['text_bytes']:>16,}  "
            f"{said['fingerprint'][:12]}"
        )
    return lines


def _source_lines(dataset: Dataset) -> list[str]:
    total = max(1, dataset.info["tokens"])
    lines = [f"{'source':<24}{'documents':>12}{'tokens':>16}{'share':>8}  licence"]
    for source, said in dataset.info["sources"].items():
        licence = dataset.info["licences"].get(source, "see its dataset")
        lines.append(
            f"{source:<24}{said['documents']:>12,}{said['tokens']:>16,}{said['tokens'] / total:>8.1%}  {licence}"
        )
    return lines


def _stage_lines(dataset: Dataset) -> list[str]:
    stages = dataset.info["stages"]
    lines = [
        f"{stage['name']:<13}{stage['documents_in']:>14,}{stage['documents_out']:>12,}"
        f"{stage['bytes_in']:>16,}{stage['bytes_out']:>16,}"
        for stage in stages
    ]
    head = f"{'stage':<13}{'documents in':>14}{'out':>12}{'bytes in':>16}{'out':>16}"
    return [head, *lines, "changed and dropped:", *(account_lines(stages) or ["  nothing"])]


def _length_lines(dataset: Dataset, split: str) -> list[str]:
    """A histogram of document lengths by powers of two."""
    lengths = np.array([row.tokens for row in dataset.rows(split)])
    counts = np.bincount(np.ceil(np.log2(lengths)).astype(int))
    lines = [f"{split}: tokens a document: median {int(np.median(lengths)):,}, longest {lengths.max():,}"]
    for power in range(int(np.flatnonzero(counts)[0]), len(counts)):
        bar = "#" * -(-int(counts[power]) * _BAR // int(counts.max()))
        lines.append(f"  up to {1 << power:>10,} {int(counts[power]):>10,} {bar}")
    return lines


def _sample_lines(dataset: Dataset, split: str, samples: int) -> list[str]:
    index = dataset.index(split)
    if not samples or not index.documents:
        return []
    wanted = set(np.linspace(0, index.documents - 1, min(samples, index.documents)).astype(int).tolist())
    lines = ["", f"{split}: {len(wanted)} of its documents"]
    for number, row in enumerate(dataset.rows(split)):
        if number in wanted:
            shard = dataset.shard(index, row.shard)
            span = (row.start, row.start + row.tokens)
            lines.append(f"  {row.id} ({row.tokens:,} tokens)")
            lines.append(f"    {show(dataset, shard.tokens(*span))}")
            if dataset.kind == "examples":
                uses = shard.uses(*span)
                fields = ", ".join(f"{int((uses >> 1 == n).sum())} {name}" for n, name in enumerate(FIELDS))
                lines.append(f"    {fields}; {int((uses & IN_LOSS).sum())} in the loss")
    return lines
