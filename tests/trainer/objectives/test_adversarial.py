"""Two nets against each other: the loss by hand, samples of a row alone, and a toy language that gets written."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data import settings
from data.errors import UserError
from data.reader import Rows
from tests.trainer.families import VOCABULARY, config, gradients, scatter
from trainer.models.adversarial import discrimination
from trainer.models.build import build
from trainer.models.depth import rate_scales
from trainer.models.head import Head
from trainer.models.initialize import initialize
from trainer.objectives.adversarial import Adversarial
from trainer.objectives.base import Objective
from trainer.objectives.causal import Causal
from trainer.objectives.rows import kind_of
from trainer.optimizer import parameter_groups
from trainer.origin import generator_of, take_over
from trainer.recipe import Model, Recipe

CPU = torch.device("cpu")
CONTEXT, PROMPT, COUNT, SAMPLES = 14, 3, 6, 3


def rows(tokens: np.ndarray, first: int = 0) -> Rows:
    """Text, a row each, at positions from `first` on."""
    count, width = tokens.shape
    starts = tuple(np.zeros(1, np.int64) for _ in tokens)
    return Rows(tokens, np.full(count, width), starts, None, np.arange(first, first + count))


def part(whole: Rows, chosen: list[int]) -> Rows:
    """Some of the rows; -1 gives filler."""
    real = np.array(chosen) >= 0
    tokens = np.where(real[:, None], whole.tokens[chosen], 0)
    starts = tuple(whole.starts[row] if row >= 0 else np.zeros(0, np.int64) for row in chosen)
    return Rows(
        tokens, np.where(real, whole.lengths[chosen], 0), starts, None, np.where(real, whole.positions[chosen], -1)
    )


TEXT = rows(np.random.default_rng(4).integers(2, VOCABULARY, (6, CONTEXT + 1)), first=100)


def objective(**changes: Any) -> Adversarial:
    told = {"prompt": PROMPT, "count": COUNT, "samples": SAMPLES, "mle_weight": 0.5} | changes
    return Adversarial(1, config("bert", context=PROMPT + COUNT), CONTEXT, **told)


def nets(family: str = "llama", **changes: Any) -> Any:
    model = build(config(family, context=CONTEXT, **changes), VOCABULARY, objective().head)
    scatter(model)
    return model


def log_chances(generator: Any, texts: Tensor) -> Tensor:
    """(texts, tokens - 1) of each token but the first, after those before it."""
    return generator(texts[:, :-1]).log_softmax(-1).gather(2, texts[:, 1:, None])[..., 0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_and_its_gradient_are_those_computed_by_hand(family: str) -> None:
    model, made = nets(family), objective()
    batch = made.batch(part(TEXT, [0, 1, -1, 3]), CPU)
    assert batch.label_tokens == 3 * CONTEXT
    found = gradients(model, made.loss(model, batch))
    assert batch.uniform is not None
    texts, real, written = model.judged(batch.input_ids, batch.uniform, PROMPT)
    texts = texts.view(4, SAMPLES, -1)
    loss = torch.zeros(())
    for row in (0, 1, 3):
        judged = -F.logsigmoid(real[row]) - F.logsigmoid(-written[row]).mean()
        loss = loss + CONTEXT * judged / 2
        for number in range(SAMPLES):
            others = [other for other in range(SAMPLES) if other != number]
            advantage = (written[row, number] - written[row, others].mean()).detach()
            chances = log_chances(model.generator, texts[row, number][None])[0, PROMPT - 1 :]
            loss = loss - CONTEXT * advantage * chances.mean() / SAMPLES
        loss = loss - 0.5 * log_chances(model.generator, torch.from_numpy(TEXT.tokens[row])[None]).sum()
    expected = gradients(model, loss)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-4, atol=2e-6 * largest)


def test_no_gradient_crosses_from_one_net_to_the_other() -> None:
    model, made = nets(), objective(mle_weight=0.0)
    batch = made.batch(TEXT, CPU)
    assert batch.uniform is not None
    _, real, written = model.judged(batch.input_ids, batch.uniform, PROMPT)
    judged = gradients(model, discrimination(real, written).sum() * CONTEXT)
    found = gradients(model, made.loss(model, batch))
    assert judged.keys() == {name for name in found if name.startswith("discriminator.")}
    for name, gradient in judged.items():
        torch.testing.assert_close(found[name], gradient)


def test_a_rows_samples_are_its_own_in_any_batch_and_others_at_any_other_position() -> None:
    model, made = nets(residual_dropout=0.3), objective()

    def written(chosen: Rows) -> list[Any]:
        batch = made.batch(chosen, CPU)
        assert batch.uniform is not None
        texts = model.judged(batch.input_ids, batch.uniform, PROMPT)[0]
        return texts.view(len(chosen.positions), SAMPLES, -1).tolist()

    together = written(TEXT)
    assert [written(part(TEXT, [row]))[0] for row in range(6)] == together
    assert written(part(TEXT, [4, -1, 2]))[::2] == [together[4], together[2]]
    moved = written(rows(TEXT.tokens, first=200))
    assert all(ours != others for ours, others in zip(together, moved, strict=True))
    assert all(len({tuple(text) for text in texts}) == SAMPLES for texts in together)
    prompts = TEXT.tokens[:, None, :PROMPT].repeat(SAMPLES, 1)
    assert np.array_equal(np.array(together)[:, :, :PROMPT], prompts)


def test_losses_and_measures_add_up_over_micro_batches_and_filler_weighs_nothing() -> None:
    model, made = nets().eval(), objective()
    whole, parts = [0, 1, 2, 3, 4, 5], ([0, 1], [2, -1, -1], [3, 4, 5], [-1, -1])
    with torch.no_grad():
        losses = [float(made.loss(model, made.batch(part(TEXT, each), CPU))) for each in (whole, *parts)]
        sums = [np.array(made.measure(model, made.batch(part(TEXT, each), CPU))) for each in (whole, *parts)]
    assert losses[0] == pytest.approx(sum(losses[1:]), rel=1e-5)
    assert losses[-1] == 0
    assert sum(sums[1:]) == pytest.approx(sums[0], rel=1e-5)
    gone = gradients(model, made.loss(model, made.batch(part(TEXT, [-1, -1]), CPU)))
    assert not any(gradient.any() for gradient in gone.values())


def test_figures_tell_how_well_samples_are_told_from_text() -> None:
    made: Objective = objective()
    sums = dict(zip(made.sums, (40.0, 20.0, 5.0, 60.0, 3.0, 3.0, 2.0, 4.0), strict=True))
    found = made.figures(sums)
    assert (found["loss"], found["accuracy"], found["tokens"]) == (2.0, 0.25, 20.0)
    assert found["discriminator_loss"] == 0.75
    assert found["discriminator_accuracy"] == 5 / 8
    assert found["discriminator_advantage"] == 1 / 4


def weights_of(model: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Shapes and weights by name."""
    held = {name: each.detach().clone() for name, each in model.named_parameters()}
    return {name: tuple(each.shape) for name, each in held.items()}, held


def taken(origin: Any, judge: Model) -> tuple[Any, list[str]]:
    """Two nets that begin with the weights of `origin`, and what is said of it."""
    model = build(config("llama", context=CONTEXT), VOCABULARY, Head("adversarial", discriminator=judge))
    shapes, held = weights_of(origin)
    return model, list(take_over(model, "origin", shapes, held.__getitem__, seed=3))


def test_the_generator_begins_as_a_plain_model_and_leaves_as_one() -> None:
    plain = build(config("llama", context=CONTEXT), VOCABULARY)
    scatter(plain, seed=9)
    model, said = taken(plain, config("bert"))
    assert said == ["the generator begins with the weights of origin, the discriminator with random ones"]
    _, weights = weights_of(model)
    initialize(model, 3)
    for name, parameter in model.discriminator.named_parameters():
        assert torch.equal(weights[f"discriminator.{name}"], parameter)
    found, read = generator_of({name: tuple(each.shape) for name, each in weights.items()}, weights.__getitem__)
    shapes, held = weights_of(plain)
    assert found == shapes
    assert all(torch.equal(read(name), tensor) for name, tensor in held.items())


def test_two_nets_go_on_as_two_and_a_discriminator_of_other_sizes_begins_anew() -> None:
    before = nets()
    alike, said = taken(before, objective().discriminator)
    assert said == []
    _, held = weights_of(before)
    assert all(torch.equal(parameter, held[name]) for name, parameter in alike.named_parameters())
    other, said = taken(before, config("bert"))
    assert len(said) == 1
    assert all(torch.equal(each, held[f"generator.{name}"]) for name, each in other.generator.named_parameters())
    assert all(each.any() for name, each in other.discriminator.named_parameters() if each.dim() > 1)


def chosen(*overrides: str) -> Recipe:
    return settings.load(Recipe, None, ["objective.kind=adversarial", "model.attention=full", *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.family=bert", "model.attention=document"], "family bert has no use for objective.kind adversarial"),
        (["model.family=t5", "model.attention=document"], "family t5 has no use for objective.kind adversarial"),
        (["model.attention=document"], "model.attention is document: set it to full"),
        (["model.attention=prefix"], "or set model.attention to full"),
        (["data.packing=best_fit"], "set data.packing to chop"),
        (["adapter.kind=lora"], "leave the adapter out"),
        (["objective.prompt_tokens=200", "objective.sample_tokens=57"], "more than the 256 tokens of a row"),
        (["data.sources={a: {dataset: a}}", "data.stages=[{start: 0, weights: {a: 1}, context: 16}]"], "the 16 tokens"),
        (["objective.discriminator.hidden_size=40"], "hidden_size 40 must divide"),
        (["objective.temperature=0.1"], "objective.temperature means something only with objective contrastive"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(overrides: list[str], said: str) -> None:
    text: Any = SimpleNamespace(kind="text", place="datasets/text")
    assert kind_of(chosen(), text) == "adversarial"
    with pytest.raises(UserError, match=said):
        kind_of(chosen(*overrides), text)


def test_the_discriminator_has_a_rate_of_its_own_and_the_generator_s_levels_keep_theirs() -> None:
    scale = rate_scales(chosen("optimizer.layer_decay=0.5", "objective.discriminator.lr_ratio=3"))
    assert scale("discriminator.bert.encoder.layer.0.output.dense.weight") == 3
    assert scale("generator.model.norm.weight") == 1
    assert scale("generator.model.layers.5.mlp.up_proj.weight") == 0.5


def test_its_settings_mean_nothing_to_other_objectives() -> None:
    text: Any = SimpleNamespace(kind="text", place="datasets/text")
    for given in ("samples=3", "mle_weight=0.5", "discriminator.lr_ratio=2"):
        with pytest.raises(UserError, match="means something only with objective adversarial"):
            kind_of(settings.load(Recipe, None, [f"objective.{given}"]), text)


SYMBOLS, THEMES, LENGTH, UPDATES = 12, 3, 8, 150


def sentences(count: int, first: int) -> Rows:
    """A toy language: a sentence's first symbol is of one of three themes, and all others are of the same one."""
    draw = np.random.default_rng(first)
    size = SYMBOLS // THEMES
    return rows(size * draw.integers(THEMES, size=(count, 1)) + draw.integers(size, size=(count, LENGTH + 1)), first)


class Toy:
    """A generator that has learned the language poorly, and what it is trained by."""

    def __init__(self) -> None:
        sizes = {"context": LENGTH, "hidden_size": 32, "num_attention_heads": 2, "initializer_range": 0.2}
        judge = Model.model_validate({"family": "bert", "num_hidden_layers": 1} | sizes)
        self.objective = Adversarial(1, judge, LENGTH, prompt=1, count=LENGTH - 1, samples=8, mle_weight=0.0)
        writer = Model.model_validate({"num_key_value_heads": 1, "num_hidden_layers": 1} | sizes)
        self.model: Any = build(writer, SYMBOLS, self.objective.head)
        initialize(self.model, 1)
        likelihood, optimizer = Causal("full"), torch.optim.AdamW(self.model.generator.parameters(), 1e-2)
        for update in range(4):
            batch = likelihood.batch(sentences(32, 1000 * update), CPU)
            self._apply(optimizer, likelihood.loss(self.model.generator, batch) / batch.label_tokens)

    def _apply(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()

    def train(self) -> None:
        """Adversarially, without any likelihood."""
        scale = {"generator": 5e-4, "discriminator": 5e-3}
        groups = parameter_groups(self.model.named_parameters(), 0.0, lambda name: scale[name.partition(".")[0]])
        for group in groups:
            group["lr"] = group.pop("scale")
        optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.95))
        for update in range(UPDATES):
            batch = self.objective.batch(sentences(24, 100_000 + 24 * update), CPU)
            self._apply(optimizer, self.objective.loss(self.model, batch) / batch.label_tokens)

    def advantage(self) -> float:
        """That a discriminator reaches which has never met this generator, on text that it hasn't learned from."""
        judged = copy.deepcopy(self)
        initialize(judged.model, 7, {name for name, _ in self.model.named_parameters() if name.startswith("disc")})
        optimizer = torch.optim.AdamW(judged.model.discriminator.parameters(), 5e-3)
        for update in range(80):
            batch = self.objective.batch(sentences(32, 200_000 + 32 * update), CPU)
            _, real, written = judged.model.judged(batch.input_ids, batch.uniform, 1)
            judged._apply(optimizer, discrimination(real, written).mean())
        return judged.figures()["discriminator_advantage"]

    def figures(self) -> dict[str, float]:
        batch = self.objective.batch(sentences(400, 300_000), CPU)
        with torch.no_grad():
            return self.objective.figures(
                dict(zip(self.objective.sums, self.objective.measure(self.model, batch), strict=True))
            )

    def on_theme(self) -> float:
        """The share of written symbols that the language allows."""
        batch = self.objective.batch(sentences(400, 300_000), CPU)
        texts = self.model.judged(batch.input_ids, batch.uniform, 1)[0] // (SYMBOLS // THEMES)
        return float((texts[:, 1:] == texts[:, :1]).float().mean())


def test_a_discriminators_advantage_shrinks_as_the_generator_learns_from_it_alone() -> None:
    toy = Toy()
    allowed, loss, before = toy.on_theme(), toy.figures()["loss"], toy.advantage()
    toy.train()
    after = toy.advantage()
    assert before > 0.6
    assert after < before / 2
    assert allowed < 0.75
    assert toy.on_theme() > 0.95
    assert toy.figures()["loss"] < loss - 0.1  # of text that it was never shown as such: it writes all of the language
