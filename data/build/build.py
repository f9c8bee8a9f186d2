"""The build: a recipe and a folder in, a dataset out.

`pipeline.py` is what happens to the documents, `workplace.py` where; here is when a build is needed and
what is written about it. The same recipe and input give the same bytes at any number of workers. The standard
library's 31.5 MB take 15 seconds on two idle cores.
"""

import hashlib
import os
import platform
import time
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data import corpus
from data.build.chunks import Encoded
from data.build.pipeline import Pipeline
from data.build.workplace import pool, publish, workplace
from data.clean.needs import library_versions
from data.dataset import FILE, FORMAT, VERSION, Dataset, describe_tokenizer, digests, load_dataset
from data.errors import UserError
from data.order.pack import pack, pack_dataset
from data.order.packing import contexts
from data.progress import Progress, Silent
from data.publish import write_json
from data.recipe import DatasetRecipe
from data.shards import SPLITS, Index
from data.tasks.encode import targets_of
from data.tasks.part import control_id
from data.tasks.summary import added, summary
from data.tasks.template import controls
from data.tokenizer.tokenizer import Tokenizer

_LIBRARIES = ("sentencepiece", "tokenizers", "webdataset", "numpy", "pyarrow", "rensa", "xxhash", "scipy")
_SHOWN = 6
_MAKES = ("tokenizer", "shard_tokens")
"""Settings that nothing depends on which is read, cleaned or found to be a copy."""
_REUSED = "reused tokenizer"


def build(
    recipe: DatasetRecipe, out: Path, executor: Executor | None = None, progress: Progress | None = None
) -> Dataset:
    """Build the dataset into the folder `out`, or return the one there if recipe and input are the same.

    Args:
        executor: does the work of the chunks; it must share `out` with this process. None: `recipe.workers` processes.
        progress: is told how far it is. None: silence.

    Raises:
        UserError: bad input, a file that changes meanwhile, nothing left after cleaning, a full disk, another dataset
            in `out`.
    """
    began = time.monotonic()
    out, progress = out.expanduser(), progress or Silent()
    before, given = _stamps(recipe), _given(recipe)
    if (found := _existing(out, recipe, given)) is not None:
        progress.say(f"{out} is already built from this recipe and this input: nothing to do")
        missing = set(recipe.pack) - contexts(out)
        return pack_dataset(out, missing, recipe.workers, progress) if missing else found
    workers = recipe.workers or os.cpu_count() or 1
    decides = _decides(recipe, given)
    with workplace(out, *decides, progress) as work, nullcontext(executor) if executor else pool(workers) as hands:
        pipeline = Pipeline(recipe, work, hands, workers, progress)
        rows = pipeline.read()
        _refuse_change(before, _stamps(recipe))
        rows = pipeline.within_quotas(pipeline.remove_copies(rows))
        work.keep = True
        tokenizer = pipeline.tokenizer(rows)
        parts = pipeline.tokenize(rows, tokenizer)
        indexes = pipeline.write(parts, tokenizer)
        pack(indexes, recipe.pack, hands, 2 * workers + 2, progress)
        publish(work, out)
        write_json(
            out / FILE,
            {
                **_origin(recipe, given),
                "stages": pipeline.ledger.to_json(),
                **(counts := _counts(parts, indexes)),
                **_task(recipe, pipeline.classes, tokenizer, parts),
                "decontaminated": pipeline.evaluation_account,
                "tokenizer": describe_tokenizer(tokenizer) | pipeline.tokenizer_account,
                "files": digests(out),
            },
        )
    for line in ("changed and dropped:", *(pipeline.ledger.lines() or ["  nothing"])):
        progress.say(line)
    progress.say(f"{out}: {counts['documents']:,} documents in {time.monotonic() - began:.1f} s")
    return load_dataset(out)


def train_tokenizer(
    recipe: DatasetRecipe, out: Path, executor: Executor | None = None, progress: Progress | None = None
) -> Tokenizer:
    """Only the tokenizer that `build` would train, into the folder `out`, for several datasets to reuse.

    Raises:
        UserError: as `build`; also if the recipe reuses a tokenizer, so that there is none to train.
    """
    if recipe.tokenizer.reuse is not None:
        raise UserError(f"tokenizer.reuse is {recipe.tokenizer.reuse}: this recipe trains no tokenizer")
    out, progress = out.expanduser(), progress or Silent()
    if (out / FILE).exists():
        raise UserError(f"{out} is a dataset, which has its tokenizer. Choose another --out.")
    workers = recipe.workers or os.cpu_count() or 1
    before, decides = _stamps(recipe), _decides(recipe, _given(recipe))
    with workplace(out, *decides, progress) as work, nullcontext(executor) if executor else pool(workers) as hands:
        pipeline = Pipeline(recipe, work, hands, workers, progress)
        rows = pipeline.read()
        _refuse_change(before, _stamps(recipe))
        rows = pipeline.within_quotas(pipeline.remove_copies(rows))
        work.keep = True
        tokenizer = pipeline.tokenizer(rows)
        publish(work, out)
    return tokenizer


def _existing(out: Path, recipe: DatasetRecipe, given: dict[str, Any]) -> Dataset | None:
    """The complete dataset in `out`, if it is the one asked for; none if there is none.

    Recipes are compared setting by setting, input by a digest of every file's id and content.
    """
    if not (out / FILE).exists():
        return None
    dataset = load_dataset(out)
    differing = _differences(dataset.info["recipe"], _recipe_json(recipe))
    what = "another recipe"
    if not differing:
        differing = _differences(dataset.info["input"], given)
        what = "other input"
    if differing:
        shown = "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, old, new in differing[:_SHOWN])
        more = f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise UserError(
            f"{out} holds a dataset built from {what}:\n{shown}{more}\n"
            "Choose another --out (or name), or delete that folder."
        )
    for split in SPLITS:
        dataset.index(split)
    return dataset


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of each leaf that differs."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(name, old, new)]
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    return found


def _given(recipe: DatasetRecipe) -> dict[str, Any]:
    """What the input is: a digest of each source, of each evaluation set that is kept out of them, and of a tokenizer
    that is taken as it is. One that can't be read, or lacks a piece, is found here, before anything is cleaned."""
    wanted, reused = recipe.tokenizer, {}
    if wanted.reuse is not None:
        tokenizer = Tokenizer.load(wanted.reuse.expanduser(), wanted.special)
        if recipe.kind == "examples":
            for role in controls(recipe.task):
                control_id(tokenizer, role)
        reused[_REUSED] = tokenizer.fingerprint
    sets = corpus.fingerprint(recipe.decontaminate.sets)
    return {**corpus.fingerprint(recipe.sources), **{f"without {name}": said for name, said in sets.items()}, **reused}


def _stamps(recipe: DatasetRecipe) -> dict[str, tuple[int, ...]]:
    return corpus.stamps((*recipe.sources, *recipe.decontaminate.sets))


def _refuse_change(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> None:
    """What was read is what was digested. Raises UserError: a local file changed, came or went meanwhile."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(f"{changed[0]}{more} changed while the build read it: build again when nobody writes there")


def _recipe_json(recipe: DatasetRecipe) -> dict[str, Any]:
    """The settings that decide the shards: not who works with how much memory, how long a server is waited for, nor
    plans that can be added later."""
    waiting = {"__all__": {"timeout_s", "tries"}}
    free = {"workers": True, "memory": True, "pack": True, "sources": waiting, "decontaminate": {"sets": waiting}}
    return recipe.model_dump(mode="json", exclude=free)


def _decides(recipe: DatasetRecipe, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What files that one build left must have been made from for another to use them; the code counts too.

    Returns:
        Of what was read and cleaned, and, beside that, of what was made of it.
    """
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.parent.rglob("*.py")):
        code.update(file.read_bytes())
    reads = {**_origin(recipe, given), "code": code.hexdigest()}
    reads["recipe"], reads["input"] = dict(reads["recipe"]), dict(reads["input"])
    makes = {name: reads["recipe"].pop(name) for name in _MAKES}
    return reads, {**makes, _REUSED: reads["input"].pop(_REUSED, None)}


def versions(recipe: DatasetRecipe) -> dict[str, str]:
    """Versions of what, beside our own code, decides the bytes."""
    libraries = {name: version(name) for name in _LIBRARIES} | library_versions(
        recipe.clean, *recipe.clean_sources.values()
    )
    return {"python": platform.python_version(), "unicode": unicodedata.unidata_version, **libraries}


def _origin(recipe: DatasetRecipe, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": recipe.name,
        "kind": recipe.kind,
        "recipe": _recipe_json(recipe),
        "input": given,
        "versions": versions(recipe),
        "licences": {source.label: source.licence for source in recipe.sources},
    }


def _task(recipe: DatasetRecipe, classes: Sequence[str], tokenizer: Tokenizer, parts: list[Encoded]) -> dict[str, Any]:
    if recipe.kind != "examples":
        return {}
    counts = added(part.examples for part in parts)
    return {"task": summary(recipe.task, classes, targets_of(recipe.task), tokenizer, counts)}


def _counts(parts: list[Encoded], indexes: list[Index]) -> dict[str, Any]:
    sources, languages = _summed(part.sources for part in parts), _summed(part.languages for part in parts)
    splits = {
        index.split: {
            "shards": len(index.shards),
            "documents": index.documents,
            "tokens": index.tokens,
            "text_bytes": index.text_bytes,
            "fingerprint": index.fingerprint,
        }
        for index in indexes
    }
    documents, tokens, text_bytes = (int(total) for total in np.sum([*sources.values()], axis=0))
    return {
        "documents": documents,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "bytes_per_token": float(np.round(text_bytes / tokens, 6)),
        "splits": splits,
        "sources": _named(sources),
        "languages": _named(languages) if any(languages) else {},
    }


def _summed(counted: Iterable[dict[str, list[int]]]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for counts in counted:
        for name, held in counts.items():
            total[name] = total.get(name, np.zeros(3, np.int64)) + held
    return total


def _named(counts: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    return {
        name: dict(zip(("documents", "tokens", "text_bytes"), held.tolist(), strict=True))
        for name, held in sorted(counts.items())
    }
