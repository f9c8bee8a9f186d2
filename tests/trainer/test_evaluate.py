"""Validation figures against their definitions, on real rows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import settings
from tests.conftest import MODEL, CommandLine
from tests.ranks import alone, launch
from trainer.evaluate import FixedSet, forward_rows, unigram_baseline
from trainer.inputs import Inputs, open_inputs
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.objectives.causal import Causal
from trainer.recipe import Recipe
from trainer.world import World

ROWS = 7


def opened(home: Path) -> tuple[Recipe, Inputs]:
    recipe = settings.load(Recipe, None, [*MODEL, f"data.dataset={home}/datasets/tiny"])
    return recipe, open_inputs(recipe)


def fixed_set(inputs: Inputs, micro_batch: int) -> FixedSet:
    assert inputs.fixed
    return FixedSet(
        inputs.fixed["data"][0], ROWS, Causal("document", inputs.tokenizer.piece_bytes), inputs.tokenizer, micro_batch
    )


def new_model(recipe: Recipe, inputs: Inputs) -> Decoder:
    model = Decoder(recipe.model, inputs.vocab_size)
    initialize(model, 3)
    return model


def measured(world: World, home: Path, micro_batch: int) -> dict[str, float]:
    recipe, inputs = opened(home)
    return fixed_set(inputs, micro_batch).measure(new_model(recipe, inputs), world)


def test_loss_bits_per_byte_and_accuracy_are_what_they_say(luban: CommandLine) -> None:
    recipe, inputs = opened(luban.home)
    model = new_model(recipe, inputs).train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    figures = fixed_set(inputs, 3).measure(model, alone())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert inputs.fixed
    loss = right = text_bytes = labels = 0.0
    for position in range(ROWS):
        batch = Causal("document").batch(inputs.fixed["data"][0].rows(np.array([position])), torch.device("cpu"))
        with torch.no_grad():
            logits = model.eval()(batch.input_ids, None, batch.documents)[0]
        targets = batch.labels[0]
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        right += float((logits.argmax(-1) == targets).sum())
        labels += len(targets)
        text_bytes += len(inputs.tokenizer.decode_bytes(targets.numpy()))
    assert labels == figures["tokens"] == ROWS * recipe.model.context
    assert figures["loss"] == pytest.approx(loss / labels, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(loss / labels), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(loss / math.log(2) / text_bytes, rel=1e-6)
    assert figures["accuracy"] == right / labels


@pytest.mark.slow
def test_figures_do_not_depend_on_ranks_or_micro_batch(luban: CommandLine, tmp_path: Path) -> None:
    expected = measured(alone(), luban.home, 7)
    for found in (measured(alone(), luban.home, 2), *launch(measured, 2, luban.home, 2, folder=tmp_path)):
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_unigram_baseline_is_the_entropy_of_the_token_frequencies(luban: CommandLine) -> None:
    _, inputs = opened(luban.home)
    counts = np.ones(inputs.tokenizer.padded_vocab_size)
    for _, tokens in inputs.dataset.documents("train"):
        np.add.at(counts, tokens, 1)
    assert inputs.fixed
    rows = inputs.fixed["data"][0].rows(np.arange(ROWS)).tokens[:, 1:].ravel()
    expected = float(-np.log(counts[rows] / counts.sum()).mean())
    found = unigram_baseline(inputs.sources, fixed_set(inputs, 4))
    assert found["loss"] == pytest.approx(expected, rel=1e-9)


def test_an_evaluation_forward_keeps_its_logits_within_bounds() -> None:
    assert forward_rows(16, 256, 4096) == 16
    assert forward_rows(16, 2048, 32768) == 1
