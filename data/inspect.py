"""What is in a dataset: counts, shares, lengths, packing plans, what was dropped and why, some of the documents.

Figures come from `dataset.json` and the indexes; lengths from the document tables of 64 shards at most, samples from
the shards they lie in. So a large dataset answers as fast as a small one; only `check` reads all of it.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.build.account import account_lines
from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.order.packing import Fill, fill, load_packing, row_lengths, spread
from data.progress import Progress
from data.shards import FIELDS, IN_LOSS, SPLITS, Index
from data.tasks.show import target_text
from data.tasks.summary import task_lines

FORMAT, VERSION = "luban-inspection", 1
_TABLES = 64  # document tables read for the histogram
_TABLES_AFAR = 4
_BAR = 40
_SAMPLE_CHARACTERS = 300


def inspect(
    place: Path | str, check: bool = False, samples: int = 2, progress: Progress | None = None
) -> dict[str, Any]:
    """All that is told of a dataset, as JSON.

    Args:
        place: its folder or URL.
        check: also re-read every file against its digest; `faults` then lists what is wrong.
        samples: how many documents of each split to show, spread evenly over it.

    Raises:
        UserError: no complete dataset there.
    """
    dataset = load_dataset(place)
    info = dataset.info
    faults = dataset.verify(progress) if check else None
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION, "place": dataset.place}
    found |= {name: info[name] for name in ("name", "kind", "documents", "tokens", "text_bytes", "bytes_per_token")}
    found["tokenizer"] = {name: info["tokenizer"][name] for name in ("fingerprint", "vocab_size", "padded_vocab_size")}
    found["sources"] = {name: _source(dataset, name) for name in info["sources"]}
    found["languages"] = info.get("languages", {})
    found["stages"] = info["stages"]
    if "task" in info:
        found["task"] = info["task"]
    if faults is not None:
        found["faults"] = faults
    found["splits"] = {split: dict(info["splits"][split]) for split in SPLITS}
    if faults:
        return found  # what lies in damaged files isn't shown
    for split, said in found["splits"].items():
        index = dataset.index(split)
        if index.documents:
            said["lengths"] = _lengths(dataset, index)
            said["packing"] = list(_packings(dataset, index))
            said["samples"] = list(_samples(dataset, index, samples))
    return found


def report(place: Path | str, check: bool = False, samples: int = 2, progress: Progress | None = None) -> str:
    """The same as a page of text.

    Raises:
        UserError: no complete dataset there, or (with `check`) a damaged one, naming each damaged file.
    """
    found = inspect(place, check, samples, progress)
    refuse_faults(found)
    return page(found)


def refuse_faults(found: dict[str, Any]) -> None:
    """Raise UserError where a check found faults, with a line for each."""
    if found.get("faults"):
        raise UserError("\n".join([*found["faults"], "Copy the dataset again from where it was built, or rebuild it."]))


def page(found: dict[str, Any]) -> str:
    """What `inspect` found, as a page of text."""
    tokenizer = found["tokenizer"]
    lines = [
        f"{found['name']} in {found['place']}: {found['kind']}, {found['documents']:,} documents, "
        f"{found['tokens']:,} tokens, {found['text_bytes']:,} bytes of text, {found['bytes_per_token']:.3f} bytes a "
        "token",
        f"tokenizer {tokenizer['fingerprint'][:12]}: {tokenizer['vocab_size']:,} pieces, "
        f"{tokenizer['padded_vocab_size']:,} rows in a model",
        "",
        *_split_lines(found),
        "",
        *_source_lines(found),
        "",
        *(task_lines(found["task"]) if "task" in found else ()),
        *_language_lines(found),
        *_stage_lines(found),
    ]
    for split, said in found["splits"].items():
        if "lengths" in said:
            lines += ["", *_length_lines(split, said), *_packing_lines(split, said)]
    for split, said in found["splits"].items():
        lines += _sample_lines(split, said)
    if "faults" in found:
        lines += ["", *(found["faults"] or ["every file has the bytes it was written with"])]
    return "\n".join(lines)


def show(dataset: Dataset, tokens: np.ndarray) -> str:
    """Tokens as text on one line, control pieces by name, cut to 300 characters."""
    tokenizer = dataset.tokenizer()
    text = repr(tokenizer.decode(tokens, control=True).removesuffix(tokenizer.pieces[tokenizer.eos_id]))[1:-1]
    return text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."


def _source(dataset: Dataset, name: str) -> dict[str, Any]:
    said, whole = dataset.info["sources"][name], dataset.info
    shares = {f"{what}_share": said[what] / max(1, whole[what]) for what in ("documents", "tokens", "text_bytes")}
    licence = whole["licences"].get(name, "see its dataset")
    return {**said, **shares, "bytes_per_token": said["text_bytes"] / max(1, said["tokens"]), "licence": licence}


def _lengths(dataset: Dataset, index: Index) -> dict[str, Any]:
    """Tokens a document, by powers of two, EOS included; from so many of the shards."""
    from pyarrow import ArrowException, parquet

    numbers = spread(len(index.shards), _TABLES_AFAR if dataset.remote else _TABLES)
    parts = []
    for number in numbers:
        name = f"{index.shards[number].url.removesuffix('.tar')}.docs.parquet"
        try:
            parts.append(parquet.read_table(dataset.file(name), columns=["tokens"])["tokens"].to_numpy())
        except (OSError, ArrowException) as error:
            raise UserError(f"cannot read the document table {name} of {dataset.place}: {error}") from None
    lengths = np.concatenate(parts)
    counts = np.bincount(np.ceil(np.log2(lengths)).astype(int))
    return {
        "shards": len(numbers),
        "median": int(np.median(lengths)),
        "longest": max(shard.longest for shard in index.shards),
        "up_to": {str(1 << power): int(counts[power]) for power in range(int(np.flatnonzero(counts)[0]), len(counts))},
    }


def _packings(dataset: Dataset, index: Index) -> Iterator[dict[str, Any]]:
    """The plans there are, each beside what the same context gives without; or what is wrong with them."""
    here = dataset.remote is None
    for row_length in row_lengths(dataset.folder, index.split):
        said: dict[str, Any] = {"context": row_length - 1}
        try:
            packing = load_packing(index, row_length, None if here else dataset.file)
        except UserError as error:
            yield {**said, "fault": str(error)}
            continue
        plain = "chop" if index.kind == "text" else "unpacked"
        fills = {"best_fit": packing.fill, plain: fill(index, row_length - 1, "chop", here)}
        yield {
            **said,
            "fingerprint": packing.fingerprint,
            "plans": len(packing.plans),
            "bytes": sum(plan.file_size for plan in packing.plans),
            **{name: {**asdict(each), "utilisation": each.utilisation} for name, each in fills.items()},
        }


def _samples(dataset: Dataset, index: Index, samples: int) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    ends = np.cumsum([shard.documents for shard in index.shards])
    for number in np.unique(np.linspace(0, index.documents - 1, min(samples, index.documents)).astype(int)).tolist():
        at = int(np.searchsorted(ends, number, side="right"))
        entry = index.shards[at]
        path = dataset.file(f"{entry.url.removesuffix('.tar')}.docs.parquet")
        table = parquet.read_table(path, columns=["id", "source", "start", "tokens"])
        (row,) = table.slice(number - int(ends[at]) + entry.documents, 1).to_pylist()
        shard, span = dataset.shard(index, at), (row["start"], row["start"] + row["tokens"])
        tokens = shard.tokens(*span)
        said = {"id": row["id"], "source": row["source"], "tokens": row["tokens"], "text": show(dataset, tokens)}
        if dataset.kind == "examples":
            said["fields"] = list(_fields(dataset, tokens, shard.uses(*span)))
            if index.targets is not None:
                values = shard.target(shard.document_at(span[0]), index.targets)
                classes = dataset.info["task"]["classes"]
                said["target"] = target_text(dataset.tokenizer(), tokens, index.targets, values, classes)
        yield said


def _fields(dataset: Dataset, tokens: np.ndarray, uses: np.ndarray) -> Iterator[dict[str, Any]]:
    """Runs of tokens of one field that are all, or all not, in the loss."""
    edges = [0, *(np.flatnonzero(np.diff(uses)) + 1).tolist(), len(uses)]
    for begin, end in pairwise(edges):
        field, in_loss = int(uses[begin]) >> 1, bool(uses[begin] & IN_LOSS)
        name = FIELDS[field] if field < len(FIELDS) else f"field {field}"
        yield {"field": name, "in_loss": in_loss, "tokens": end - begin, "text": show(dataset, tokens[begin:end])}


def _split_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'split':<9}{'shards':>8}{'documents':>12}{'tokens':>16}{'bytes':>16}  fingerprint"
    for split, said in found["splits"].items():
        yield (
            f"{split:<9}{said['shards']:>8,}{said['documents']:>12,}{said['tokens']:>16,}{said['text_bytes']:>16,}  "
            f"{said['fingerprint'][:12]}"
        )


def _source_lines(found: dict[str, Any]) -> Iterator[str]:
    head = f"{'source':<20}{'documents':>12}{'share':>8}{'tokens':>16}{'share':>8}{'bytes':>16}{'share':>8}"
    yield f"{head}{'bytes/token':>13}  licence"
    for source, said in found["sources"].items():
        figures = "".join(
            f"{said[what]:>{width},}{said[f'{what}_share']:>8.1%}"
            for what, width in (("documents", 12), ("tokens", 16), ("text_bytes", 16))
        )
        yield f"{source:<20}{figures}{said['bytes_per_token']:>13.3f}  {said['licence']}"


def _language_lines(found: dict[str, Any]) -> Iterator[str]:
    if found["languages"]:
        yield f"{'language':<20}{'documents':>12}{'tokens':>24}{'share':>8}"
        for language, said in found["languages"].items():
            share = said["tokens"] / max(1, found["tokens"])
            yield f"{language:<20}{said['documents']:>12,}{said['tokens']:>24,}{share:>8.1%}"
        yield ""


def _stage_lines(found: dict[str, Any]) -> list[str]:
    stages = found["stages"]
    lines = [
        f"{stage['name']:<13}{stage['documents_in']:>14,}{stage['documents_out']:>12,}"
        f"{stage['bytes_in']:>16,}{stage['bytes_out']:>16,}"
        for stage in stages
    ]
    head = f"{'stage':<13}{'documents in':>14}{'out':>12}{'bytes in':>16}{'out':>16}"
    return [head, *lines, "changed and dropped:", *(account_lines(stages) or ["  nothing"])]


def _length_lines(split: str, said: dict[str, Any]) -> Iterator[str]:
    lengths = said["lengths"]
    part = "" if lengths["shards"] == said["shards"] else f" (from {lengths['shards']:,} of {said['shards']:,} shards)"
    yield f"{split}: tokens a document: median {lengths['median']:,}, longest {lengths['longest']:,}{part}"
    most = max(lengths["up_to"].values())
    for upto, count in lengths["up_to"].items():
        yield f"  up to {int(upto):>10,} {count:>10,} {'#' * -(-count * _BAR // most)}"


def _packing_lines(split: str, said: dict[str, Any]) -> Iterator[str]:
    if not said["packing"]:
        yield f"{split}: no packing plans (luban data pack makes them)"
    for each in said["packing"]:
        if "fault" in each:
            yield f"{split}: plans for a context of {each['context']:,} can't be used: {each['fault']}"
            continue
        of = f"plans of {each['plans']:,} shard(s), {each['bytes']:,} bytes"
        yield f"{split}, context {each['context']:,}: packing {of}"
        for name in ("best_fit", "chop", "unpacked"):
            if name in each:
                figures = {key: value for key, value in each[name].items() if key != "utilisation"}
                yield f"  {name:<9} {Fill(**figures)}"


def _sample_lines(split: str, said: dict[str, Any]) -> Iterator[str]:
    if said.get("samples"):
        yield from ("", f"{split}: {len(said['samples'])} of its documents")
    for each in said.get("samples", ()):
        yield f"  {each['id']} ({each['source']}, {each['tokens']:,} tokens)"
        if "fields" not in each:
            yield f"    {each['text']}"
        for field in each.get("fields", ()):
            loss = "in the loss" if field["in_loss"] else "not in the loss"
            yield f"    [{field['field']}, {field['tokens']:,} tokens, {loss}] {field['text']}"
        if "target" in each:
            yield f"    target {each['target']}"
