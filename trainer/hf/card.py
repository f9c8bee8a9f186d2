"""The model card of an export: what the weights are made of, how they were trained, and how to load them.

Where the figures come from is in the run's record; the card's digest of the lineage is over every update that made the
weights, so that a card can be held against a run, and a run against its shards (`luban verify`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.dataset import Dataset
from trainer import checkpoint, record
from trainer.checkpoint import Checkpoint
from trainer.meters import labels_of
from trainer.recipe import Recipe
from trainer.units import short, size

TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
}
"""End of a class's name -> the task by which Hugging Face finds a model."""
COUNTS = ("tokens", "examples", "windows")
"""Figures of an evaluation that are numbers of something."""


def lineage_digest(run: Path, consumed: int) -> str:
    """SHA-256 over the updates, applied and skipped, that made the weights: step, positions, verdict, rows' digest."""
    whole = hashlib.sha256()
    for event in record.load(run).lineage(consumed):
        said = [event["step"], event["positions"], event["verdict"], event.get("rows")]
        whole.update(f"{json.dumps(said)}\n".encode())
    return whole.hexdigest()


def card(
    run: Path,
    recipe: Recipe,
    found: Checkpoint,
    datasets: Mapping[str, Dataset],
    config: Mapping[str, Any],
    parameters: int,
    checked: str,
    layout: str,
) -> str:
    """README.md of an exported directory.

    Args:
        datasets: by source.
        config: its config.json.
        parameters: how many the model has.
        checked: what the comparison with transformers has shown, a sentence.
        layout: how its tokenizer lays an input out, a sentence.
    """
    parts = (
        [_front_matter(datasets, config), f"# {run.name}, step {found.step:,}", ""],
        _model(recipe, config, parameters, checked),
        _data(datasets),
        _training(run, recipe, found),
        _ancestry(run, recipe),
        _loading(config, layout),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _front_matter(datasets: Mapping[str, Dataset], config: Mapping[str, Any]) -> str:
    licences = sorted({each for dataset in datasets.values() for each in dataset.info.get("licences", {}).values()})
    languages = sorted({each for dataset in datasets.values() for each in dataset.info.get("languages", {})})
    said: dict[str, Any] = {
        "library_name": "transformers",
        "license": "other",
        "license_name": f"see the sources: {', '.join(licences) or 'unknown'}",
        "tags": ["luban", config["model_type"]],
        "datasets": [dataset.name for dataset in datasets.values()],
    }
    if languages := [each for each in languages if len(each) in (2, 3)]:
        said["language"] = languages
    task = next((task for end, task in TASKS.items() if config["architectures"][0].endswith(end)), None)
    return f"---\n{yaml.safe_dump(said | ({'pipeline_tag': task} if task else {}), sort_keys=False)}---\n"


def _model(recipe: Recipe, config: Mapping[str, Any], parameters: int, checked: str) -> Iterator[str]:
    yield (
        f"{config['architectures'][0]}, {parameters:,} parameters, sequences of {recipe.model.context:,} tokens. "
        f"Trained and exported by Luban. {checked}"
    )
    if recipe.model.is_decoder and recipe.model.attention == "document":
        yield "In training a token saw only its own document, so feed one document at a time."
    yield ""


def _data(datasets: Mapping[str, Dataset]) -> Iterator[str]:
    yield "## Data"
    for name, dataset in datasets.items():
        info = dataset.info
        licences = info.get("licences", {})
        yield (
            f"\n**{name}**: {info['documents']:,} documents, {size(info['text_bytes'])} of text, {info['tokens']:,} "
            f"tokens; training split `{info['splits']['train']['fingerprint']}`, tokenizer "
            f"`{info['tokenizer']['fingerprint']}`.\n"
        )
        yield "| source | licence | documents | text | tokens |\n|---|---|---:|---:|---:|"
        for source, each in info.get("sources", {}).items():
            yield (
                f"| {source} | {licences.get(source, 'unknown')} | {each['documents']:,} | {size(each['text_bytes'])} "
                f"| {each['tokens']:,} |"
            )
        dropped = [
            f"{stage['name']} {stage['documents_in'] - stage['documents_out']:,}"
            for stage in info.get("stages", [])
            if stage["documents_in"] > stage["documents_out"]
        ]
        if dropped:
            yield f"\nDocuments dropped, by stage: {', '.join(dropped)}."
    yield ""


def _training(run: Path, recipe: Recipe, found: Checkpoint) -> Iterator[str]:
    progress, history = found.state["progress"], record.load(run)
    skipped = sum(last - first for first, last in progress["skipped"])
    yield "## Training"
    yield "\n| | |\n|---|---|"
    yield f"| updates | {found.step:,} of {recipe.train.batch_rows} rows |"
    yield f"| rows read | {progress['consumed']:,}, of them skipped {skipped:,} |"
    learned = "label tokens" if labels_of(history.metrics()) == "tokens" else "examples"
    yield f"| {learned} | {progress['tokens']:,} ({short(progress['tokens'])}) |"
    yield f"| seed | {recipe.seed} |"
    yield (
        f"| learning rate | {recipe.optimizer.lr:g} at its peak, {recipe.schedule.kind}, "
        f"{recipe.schedule.warmup_steps} steps of warm-up |"
    )
    start = history.attempt(found.attempt).start
    yield f"| precision | {start['precision']}, ZeRO {start['zero_stage']}, {start['world']} rank(s) |"
    for name, figures in _evaluations(history, found.step).items():
        said = ", ".join(
            f"{key} {value:,.0f}" if key in COUNTS else f"{key} {value:.4f}"
            for key, value in figures.items()
            if isinstance(value, float)
        )
        yield f"| validation, {name} | {said} |"
    versions = ", ".join(f"{name} {number}" for name, number in start["versions"].items())
    yield f"| versions | {versions} |"
    yield f"| checkpoint | `{found.name}`, manifest `{checkpoint.digest_of(found.manifest)}` |"
    yield f"| lineage | `{lineage_digest(run, progress['consumed'])}` |"
    yield "\nEvery position up to the rows read was seen exactly once, but for those skipped.\n"


def _evaluations(history: record.History, step: int) -> dict[str, dict[str, Any]]:
    """The newest figures up to a step, by set."""
    events = [event for attempt in history.attempts for event in attempt.of("evaluation") if event["step"] <= step]
    return {event["set"]: event["metrics"] for event in events}


def _ancestry(run: Path, recipe: Recipe) -> Iterator[str]:
    if recipe.ancestor is None:
        return
    first = next((attempt.start for attempt in record.load(run).attempts if attempt.start.get("ancestor")), {})
    held = first.get("ancestor") or {}
    origin, _, point = recipe.ancestor.rpartition("@")
    yield "## Ancestry"
    what = f"step {point}" if point.isdigit() else point
    read = f", which had learned from {held['tokens']:,} labels" if held.get("tokens") else ""
    yield f"\nIt began with the weights of {Path(origin).name}, {what}{read} (`{held.get('manifest', 'unknown')}`).\n"


def _loading(config: Mapping[str, Any], layout: str) -> Iterator[str]:
    name = config["architectures"][0]
    yield "## Loading"
    yield f"""
```python
from transformers import AutoTokenizer, {name}

tokenizer = AutoTokenizer.from_pretrained(DIR)
model = {name}.from_pretrained(DIR)
```

Text that looks like a control piece is text: encode with `split_special_tokens=True`. {layout}"""
