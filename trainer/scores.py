"""A trained model out of its checkpoint: figures and texts, in one process without an engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from trainer.adapters.adapt import model_of
from trainer.evaluate import FixedSet, forward_rows, unigram_baseline
from trainer.inputs import Inputs, classes_of, open_inputs
from trainer.objectives.base import Objective
from trainer.objectives.choose import objective_of
from trainer.objectives.classification import Classification
from trainer.recipe import Recipe
from trainer.run import Source, dataset_path, read_recipe
from trainer.sizes import MOST_ROWS
from trainer.task_scores import class_lines, task_lines, text_lines, written
from trainer.world import World


@dataclass(frozen=True)
class Loaded:
    """A model as a checkpoint holds it, in fp32, with the data of its run."""

    model: Any
    recipe: Recipe
    inputs: Inputs
    objective: Objective
    step: int
    device: torch.device


def load_model(point: str, dataset: Path | str | None = None) -> Loaded:
    """The model of RUN[@STEP], and its dataset or another of the same tokenizer.

    Raises:
        UserError: no such checkpoint, a damaged one, or a dataset of another tokenizer or other classes.
    """
    source = Source.parse(point)
    found = source.checkpoint()
    recipe = own = read_recipe(source.run)
    if dataset is not None:
        other = {"dataset": str(dataset), "sources": {}, "stages": (), "lanes": 1}
        recipe = dataset_path(recipe.model_copy(update={"data": recipe.data.model_copy(update=other)}))
    inputs = open_inputs(recipe)
    if inputs.tokenizer.fingerprint != found.state["tokenizer"]:
        raise UserError(f"{recipe.data.label} was made with another tokenizer than {point}: its figures mean nothing")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = objective_of(recipe, inputs.dataset)
    if dataset is not None and isinstance(objective, Classification):
        _refuse_other_classes(point, classes_of(own), objective.classes, recipe.data.label)
    model = model_of(recipe, found.state["vocab_size"], objective.head)
    parameters, weights = dict(model.named_parameters()), found.weights()
    odd = sorted(n for n in parameters.keys() | weights.keys() if _shape(parameters, n) != _shape(weights, n))
    if odd:
        raise UserError(f"{source.run}/recipe.yaml describes another model than {found.name} holds: {odd[0]} differs")
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    return Loaded(model.to(device).eval(), recipe, inputs, objective, found.step, device)


def _refuse_other_classes(point: str, known: tuple[str, ...] | None, given: tuple[str, ...], label: str) -> None:
    if known is None:
        raise UserError(f"which classes {point} tells apart can't be known: the dataset that it learned from is gone")
    if known != given:
        raise UserError(
            f"{point} tells {', '.join(known)} apart, and {label} holds {', '.join(given)}: its figures mean nothing. "
            "Build it with the same task.labels, in their order"
        )


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def sums(loaded: Loaded, rows: int = 0, source: str | None = None) -> tuple[dict[str, float], FixedSet]:
    """What the figures of the validation split (`rows` of it; 0: all) are made of, and the set itself.

    Args:
        source: of which source; None: of the first that has one.

    Raises:
        UserError: the split has no row of this context.
    """
    found = loaded.inputs.fixed
    if not found:
        raise UserError(f"{loaded.recipe.data.label} has no validation row of {loaded.recipe.room} tokens")
    reader, held = found[source or next(iter(found))]
    forward = forward_rows(
        MOST_ROWS, loaded.recipe.model.context, loaded.inputs.vocab_size, loaded.recipe.objective.together
    )
    chosen = FixedSet(reader, min(rows or held, held), loaded.objective, loaded.inputs.tokenizer, forward)
    return chosen.sums(loaded.model, World(0, 1, loaded.device)), chosen


def measure(loaded: Loaded, rows: int = 0, source: str | None = None) -> tuple[dict[str, float], FixedSet]:
    """As `sums`, but the objective's figures."""
    found, fixed = sums(loaded, rows, source)
    return loaded.objective.figures(found), fixed


def evaluate_run(point: str, dataset: str | None, rows: int, generations: int) -> str:
    """What `luban evaluate` prints."""
    loaded = load_model(point, dataset)
    sources = list(loaded.inputs.fixed) or [None]
    return "\n".join(line for source in sources for line in _evaluated(point, loaded, rows, generations, source))


def _evaluated(point: str, loaded: Loaded, rows: int, generations: int, source: str | None) -> list[str]:
    """The figures of one source."""
    found, fixed = sums(loaded, rows, source)
    inputs = loaded.inputs
    dataset = inputs.datasets[source or next(iter(inputs.datasets))]
    task = dataset.info["task"] if dataset.kind == "examples" else None
    what = f"validation examples of {task['kind']}" if task else "validation split"
    lines = [f"{point} at step {loaded.step} on the {what} of {fixed.reader.indexes[0].folder.name}"]
    if not loaded.objective.token_labels:
        return lines + task_lines(loaded.model, inputs, dataset, fixed, found)
    figures, baseline = loaded.objective.figures(found), unigram_baseline(inputs.sources, fixed)
    of_tokens = figures | {"loss": figures.get("masked_loss", figures["loss"])}
    right = "next token right" if loaded.objective.name in ("causal", "adversarial") else "token right"
    lines.append(f"  {'':16} {'model':>10} {'unigram':>10}")
    for name, label in (
        ("loss", "loss, nats/token"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte"),
        ("accuracy", right),
    ):  # fmt: skip
        lines.append(f"  {label:16} {of_tokens[name]:10.4f} {baseline[name]:10.4f}")
    if "next_sentence_accuracy" in figures:
        lines.append(f"  {'next sentence':16} {figures['next_sentence_accuracy']:10.4f} {0.5:10.4f}")
    if "discriminator_advantage" in figures:
        for name, guess in (("accuracy", 0.5), ("advantage", 0.0)):
            lines.append(f"  {f'judge {name}':16} {figures[f'discriminator_{name}']:10.4f} {guess:10.4f}")
    lines.append(f"  over {figures['tokens']:,.0f} label tokens in {fixed.rows:,} rows")
    if task and generations:
        made = written(loaded.model, loaded.recipe, inputs, dataset, fixed, generations)
        by_class = bool(task["classes"])
        lines += class_lines(*made[:2], inputs.sources) if by_class else text_lines(*made)
    return lines
