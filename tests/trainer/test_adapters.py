"""LoRA and prompt tuning: what they compute, what learns, and that they resume on any topology."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import UserError
from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.families import padded
from tests.trainer.saving import save
from trainer import checkpoint
from trainer.adapters import adapt, lora, peft, prompt
from trainer.adapters.shapes import adapted_shapes, learning
from trainer.adapters.shapes import learned as learned_of
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, folder_name, save_frozen
from trainer.models.build import build
from trainer.models.head import Head
from trainer.models.initialize import initialize
from trainer.models.shapes import parameter_shapes
from trainer.recipe import Model, Recipe
from trainer.recipe_adapter import Adapter, refuse_other
from trainer.world import World

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter__kind": "lora", "adapter__rank": 2, "adapter__alpha": 8, "adapter__dropout": 0.1},
    "prompt": {"adapter__kind": "prompt", "adapter__tokens": 4, "model__context": toy.CONTEXT + 4},
}
BEFORE, AFTER = 3, 6


def recipe(kind: str = "lora", **changes: Any) -> Recipe:
    return toy.recipe(**KINDS[kind], optimizer__lr=1e-2, **changes)


def adapted(chosen: Recipe, seed: int = 1) -> Any:
    """The toy with the weights of `seed`, as a pretrained run would bring them, and the adapter's first ones."""
    model = adapt.model_of(chosen, toy.VOCAB)
    initialize(model, seed)
    adapt.begin_adapter(model, chosen, [])
    return model


def learned(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def shaken(model: torch.nn.Module) -> Any:
    """`model`, its adapter having learned something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_an_adapter_changes_no_name_of_the_model_and_learns_alone():
    plain = dict(toy.new_model(toy.recipe()).named_parameters())
    model = adapted(recipe())
    names = dict(model.named_parameters())
    assert [name for name in names if not peft.is_own(name)] == list(plain)
    assert all(torch.equal(names[name], plain[name]) for name in plain)
    assert learned(model) == [name for name in names if peft.is_own(name)]
    assert len(learned(model)) == 2 * 7 * 2  # A and B of seven projections in each of two blocks
    assert learned(adapted(recipe("prompt"))) == ["model.embed_tokens.prompt.weight"]


def test_a_new_lora_computes_what_the_model_computes_bit_for_bit():
    ids = toy.rows(0)[0]
    assert torch.equal(adapted(recipe()).eval()(ids), toy.new_model(toy.recipe())(ids))


def test_lora_adds_the_scaled_low_rank_product():
    model = shaken(adapted(recipe()))
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 5, 32)
    by_hand = x @ (layer.weight + 8 / 2 * layer.lora_B.weight @ layer.lora_A.weight).T
    torch.testing.assert_close(layer(x), by_hand)
    model.train()
    assert not torch.equal(layer(x), layer(x))  # dropout, in training alone


def test_merging_gives_the_plain_model_of_the_same_logits():
    model, ids = shaken(adapted(recipe())), toy.rows(0)[0]
    before, weights = model(ids), {name: p.detach().clone() for name, p in model.named_parameters()}
    assert not torch.allclose(before, toy.new_model(toy.recipe())(ids), atol=1e-3)
    lora.merge(model)
    plain = dict(toy.new_model(toy.recipe()).named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(plain)
    assert type(model.model.layers[0].mlp.up_proj) is type(toy.new_model(toy.recipe()).model.layers[0].mlp.up_proj)
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)
    outside = adapt.merged(recipe(), weights)
    assert outside.keys() == plain.keys()
    assert all(torch.equal(outside[name], parameter) for name, parameter in model.named_parameters())


HEADS = {"gpt2": Head(), "bert": Head("classes", 3), "t5": Head(), "transformer": Head()}
"""By family."""


def of_family(family: str, kind: str = "lora") -> Recipe:
    model = Model(family=family, context=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)  # pyright: ignore
    return recipe(kind).model_copy(update={"model": model})


@pytest.mark.parametrize("family", HEADS)
def test_every_familys_projections_are_adapted_and_merged(family):
    head, chosen = HEADS[family], of_family(family)
    model = adapt.model_of(chosen, toy.VOCAB, head)
    initialize(model, 1)
    plain = build(chosen.model, toy.VOCAB, head)
    initialize(plain, 1)
    adapt.begin_adapter(model, chosen, [])
    ids = torch.randint(toy.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    given = (ids, ids) if chosen.model.is_encoder_decoder else (ids,)
    with torch.no_grad():
        assert torch.equal(model.eval()(*given), plain.eval()(*given))
        weights = {name: p.detach().clone() for name, p in shaken(model).named_parameters()}
        before = model(*given)
        assert not torch.allclose(before, plain(*given), atol=1e-3)
        lora.merge(model)
        torch.testing.assert_close(model(*given), before, rtol=1e-4, atol=1e-5)
    outside = adapt.merged(chosen, weights)
    assert outside.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(outside[name], parameter) for name, parameter in model.named_parameters())
    heads = [name for name in weights if not peft.is_own(name) and name.startswith(model.head_names)]
    assert set(learned(adapt.model_of(chosen, toy.VOCAB, head))) - set(filter(peft.is_own, weights)) == (
        set(heads) if head.kind == "classes" else set()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", *HEADS])
def test_a_plan_counts_the_parameters_that_an_adapted_model_has_and_those_that_learn(family, kind):
    chosen = of_family(family, kind)
    model = adapt.model_of(chosen, toy.VOCAB)
    named = {name: tuple(p.shape) for name, p in model.named_parameters()}
    counted = adapted_shapes(parameter_shapes(chosen.model, toy.VOCAB), chosen)
    assert list(counted.items()) == list(named.items())
    assert learned_of(counted, learning(chosen, False), model.head_names) == set(learned(model))


def test_a_prompt_is_what_its_vectors_before_the_input_compute():
    model, ids = shaken(adapted(recipe("prompt"))), toy.rows(0)[0]
    prefix = torch.tensor(model.prefix).expand(len(ids), 4)
    vectors = torch.cat(
        [model.model.embed_tokens.prompt.weight.expand(len(ids), 4, 32), model.model.embed_tokens(ids)], 1
    )
    ours = model(torch.cat([prefix, ids], 1))
    model.model.embed_tokens.forward = lambda _: vectors
    assert torch.equal(ours, model(torch.zeros(len(ids), 4 + toy.CONTEXT, dtype=torch.int64)))


def test_a_prompt_tells_a_trained_model_which_of_its_tasks_is_meant():
    """The toy learns to count in steps of 1 to 4, which the first token doesn't tell; the prompt learns to say 3."""

    def mean(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(ids, labels) / (labels != -100).sum()

    def train(model: Any, batch: Any, steps: int, rate: float) -> float:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        for step in range(steps):
            loss = mean(model, *batch(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def threes(step: int) -> Any:
        generator = torch.Generator().manual_seed(step)
        text = (torch.randint(toy.VOCAB, (16, 1), generator=generator) + 3 * torch.arange(3)) % toy.VOCAB
        batch = prompt.prefixed(toy.Batch(text[:, :1], text[:, 1:2].contiguous(), None, 16, 16), model.prefix)
        return batch.input_ids, batch.labels

    base = toy.new_model(toy.recipe())
    train(base, toy.rows, 250, 1e-2)
    model = adapted(recipe("prompt"))
    model.load_state_dict(base.state_dict(), strict=False)
    adapt.begin_adapter(model, recipe("prompt"), [])
    with torch.no_grad():
        before = mean(model, *threes(10_000)).item()
    train(model, threes, 80, 3e-2)
    with torch.no_grad():
        assert mean(model, *threes(10_000)).item() < before - 0.5
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, base.state_dict().get(name, p))}
    assert not moved


def test_a_prompt_begins_as_tokens_of_the_vocabulary():
    table = adapted(recipe("prompt")).model.embed_tokens
    assert all(any(torch.equal(row, word) for word in table.weight) for row in table.prompt.weight)
    again, other = (adapted(recipe("prompt", seed=seed)).model.embed_tokens.prompt.weight for seed in (1, 2))
    assert torch.equal(table.prompt.weight, again)
    assert not torch.equal(again, other)


def test_nothing_is_asked_of_virtual_tokens_and_rows_of_several_documents_are_refused():
    batch = replace(toy.micro_batches(0, toy.ROWS, World(0, 1, torch.device("cpu")))[0], at=torch.arange(toy.ROWS))
    longer = prompt.prefixed(batch, [96, 97])
    assert longer.input_ids[:, :2].tolist() == [[96, 97]] * toy.ROWS
    assert torch.equal(longer.input_ids[:, 2:], batch.input_ids)
    assert (longer.labels[:, :2] == -100).all()
    assert torch.equal(longer.labels[:, 2:], batch.labels)
    assert longer.at.tolist() == list(range(2, 2 + toy.ROWS))
    examples = replace(
        batch, labels=torch.arange(toy.ROWS), padding=padded(batch.input_ids > 3), token_types=batch.input_ids % 2
    )
    longer = prompt.prefixed(examples, [96, 97])
    assert torch.equal(longer.labels, examples.labels)
    assert longer.padding.real[:, :2].all()
    assert not longer.token_types[:, :2].any()
    with pytest.raises(UserError, match="several documents"):
        prompt.prefixed(toy.Batch(batch.input_ids, batch.labels, object(), 1, 1), [96])  # pyright: ignore


def test_targets_choose_projections_by_name_or_pattern():
    def of(*targets: str) -> set[str]:
        model = toy.new_model(toy.recipe())
        return set(lora.chosen(model, targets))

    every = {f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qkvo"}
    every |= {f"model.layers.{n}.mlp.{p}_proj" for n in (0, 1) for p in ("gate", "up", "down")}
    assert of() == every
    assert of("q_proj", "v_proj") == {name for name in every if name.endswith((".q_proj", ".v_proj"))}
    assert of("model.layers.1.mlp.*") == {name for name in every if "1.mlp" in name}
    with pytest.raises(UserError, match=r"'q_prj' matches no projection; there are q_proj"):
        of("q_prj")


def test_a_rank_beyond_a_layers_width_is_refused():
    with pytest.raises(
        UserError, match=r"adapter.rank 17 exceeds the width of model.layers.0.self_attn.k_proj, 32 -> 16"
    ):
        adapted(recipe().model_copy(update={"adapter": Adapter(kind="lora", rank=17)}))


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ValidationError, match="rank means something only with kind lora, not prompt"):
        Adapter(kind="prompt", rank=4)
    with pytest.raises(ValidationError, match="tokens means something only with kind prompt, not none"):
        Adapter(tokens=4)


def test_an_ancestors_adapter_goes_on_or_is_merged_and_else_is_refused():
    none, one, other = Adapter(), Adapter(kind="lora", rank=4), Adapter(kind="lora", rank=8)
    for allowed in (
        (none, one),
        (none, none),
        (one, one),
        (one, none),
        (one, Adapter(kind="lora", rank=4, dropout=0.5)),
    ):
        refuse_other(*allowed, "old")
    with pytest.raises(UserError, match=r"old has an adapter of .*kind=lora.*rank=4.* wants one of .*rank=8"):
        refuse_other(one, other, "old")
    with pytest.raises(UserError, match="can't be merged"):
        refuse_other(Adapter(kind="prompt"), none, "old")


def written(folder: Path, kind: str = "lora", seed: int = 1) -> tuple[Any, Path]:
    """An adapter that has learned, and its folder."""
    model = shaken(adapted(recipe(kind), seed))
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = {name: tensor for name, tensor in tensors.items() if peft.is_own(name)}
    peft.write(folder, model, recipe(kind).adapter, own, tensors, "base")
    return model, folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_alone_is_read_back_onto_its_base(kind, tmp_path):
    model, folder = written(tmp_path, kind)
    fresh = adapted(recipe(kind))
    peft.load_adapter(folder, fresh, recipe(kind).adapter)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert (folder / peft.WEIGHTS).stat().st_size < 40_000


def test_an_adapter_for_another_base_is_refused(tmp_path):
    _, folder = written(tmp_path)
    with pytest.raises(UserError, match=r"for another base: it was trained on weights \w+, and this model's are"):
        peft.load_adapter(folder, adapted(recipe(), seed=2), recipe().adapter)
    for change, words in (
        ({"model__num_hidden_layers": 3}, "don't share base_model.model.model.layers.2"),
        ({"model__intermediate_size": 64}, r"down_proj.lora_A.weight as \(2, 128\), this model wants \(2, 64\)"),
    ):
        other = recipe(**change)
        with pytest.raises(UserError, match=f"for another base: it .*{words}"):
            peft.load_adapter(folder, adapted(other), other.adapter)


def test_an_adapter_of_another_shape_or_kind_or_none_is_refused(tmp_path):
    _, folder = written(tmp_path)
    for adapter, words in (
        (Adapter(kind="lora", rank=4, alpha=8), "has r 2, the recipe adapter.rank 4"),
        (Adapter(kind="lora", rank=2, alpha=4), "has lora_alpha 8.0, the recipe adapter.alpha 4.0"),
        (Adapter(kind="prompt"), "of type LORA, adapter.kind prompt wants PROMPT_TUNING"),
    ):
        with pytest.raises(UserError, match=words):
            peft.load_adapter(folder, adapted(recipe()), adapter)
    (folder / peft.CONFIG).write_text((folder / peft.CONFIG).read_text().replace('"bias"', '"use_dora": true, "bias"'))
    with pytest.raises(UserError, match="use_dora True, which Luban's LoRA doesn't compute"):
        peft.load_adapter(folder, adapted(recipe()), recipe().adapter)
    with pytest.raises(UserError, match="holds no adapter in PEFT's format"):
        peft.load_adapter(folder / "nowhere", adapted(recipe()), recipe().adapter)


# -- on ranks ----------------------------------------------------------------------------------------------------------


def training(world: World, kind: str, stage: int, seed: int = 1, exact: str = "topology") -> toy.Training:
    chosen = recipe(kind, engine__zero_stage=stage, engine__exact=exact, seed=seed)
    model = adapted(chosen)
    ids = getattr(model, "prefix", None)
    prepare = (lambda batch: prompt.prefixed(batch, ids)) if ids else (lambda batch: batch)
    return toy.Training(world, chosen, micro_batch=2, model=model, prepare=prepare)


def train_and_save(world: World, root: Path) -> Any:
    """Of each kind and stage: a checkpoint after 3 steps, its state, and the next 3 steps without a break."""
    told = {}
    for kind in KINDS:
        for stage in (1, 2, 3):
            run = root / f"{kind}-{stage}"
            model = adapted(recipe(kind))
            still = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
            base = world.gather(save_frozen(run, still) if world.rank == 0 else None)[0]
            made = training(world, kind, stage)
            for number in range(BEFORE):
                made.step(number)
            state = {"step": BEFORE, "attempt": 1, "adam_step": made.engine.adam_step(), "zero_stage": stage}
            save(run, folder_name(BEFORE, 1), state, made.engine.spans(), base, world)
            at = made.state()
            told[kind, stage] = at, [made.step(number) for number in range(BEFORE, AFTER)], made.state()
    return told if world.rank == 0 else None


def load_and_go_on(world: World, root: Path, wanted: list[tuple[str, int, int]]) -> Any:
    """Each (kind, stage that saved, stage that loads) loaded into other first weights, and 3 more steps."""
    told = {}
    for kind, saved, stage in wanted:
        found = Checkpoint(root / f"{kind}-{saved}" / checkpoint.FOLDER / folder_name(BEFORE, 1))
        made = training(world, kind, stage, seed=2)
        made.engine.load(found.read, found.state["adam_step"])
        at = made.state()
        told[kind, saved, stage] = at, [made.step(number) for number in range(BEFORE, AFTER)], made.state()
    return told if world.rank == 0 else None


def exactly(world: World) -> Any:
    """Losses and weights after 3 steps under `exact: any`, by kind, at a stage of its own for each number of ranks."""
    made = {kind: training(world, kind, {1: 2, 2: 3, 3: 1}[world.size], exact="any") for kind in KINDS}
    return {kind: ([each.step(n) for n in range(3)], each.state()) for kind, each in made.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("adapters")
    return folder, launch(train_and_save, 2, folder, folder=folder)[0]


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][part], other[name][part]) for name in one for part in (WEIGHT, *MOMENTS)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_holds_the_adapter_alone(saved, kind, stage):
    root, told = saved
    state, steps, _ = told[kind, stage]
    found = Checkpoint(root / f"{kind}-{stage}" / checkpoint.FOLDER / folder_name(BEFORE, 1))
    assert found.problems() == []
    assert all(map(peft.is_own, found.manifest["parameters"]))
    assert set(found.manifest["parameters"]) == set(state)
    assert not any(map(peft.is_own, found.frozen()))
    assert found.weights().keys() == dict(adapted(recipe(kind)).named_parameters()).keys()
    assert all(applied for _, _, applied in steps)
    assert all(parts["exp_avg_sq"].all() for name, parts in state.items() if "lora_A" not in name)
    reference = told[kind, 1][1]
    assert [loss for loss, _, _ in steps] == pytest.approx([loss for loss, _, _ in reference], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_an_adapter_resumes_on_any_topology(saved, size):
    root, told = saved
    cases = [(kind, stage, other) for kind in KINDS for stage in (1, 2, 3) for other in (stage, stage % 3 + 1)]
    cases = cases if size == 2 else cases[1::2]
    found = launch(load_and_go_on, size, root, cases, folder=root)[0]
    for (kind, stage, other), (at, steps, state) in found.items():
        before, expected, after = told[kind, stage]
        assert same(at, before), (kind, stage, other)
        if size == 2 and stage == other:
            assert steps == expected, (kind, stage)
            assert same(state, after), (kind, stage)
        elif kind == "prompt":  # dropout of the other is drawn by forward, of which 3 ranks have other ones
            assert [loss for loss, _, _ in steps] == pytest.approx([loss for loss, _, _ in expected], abs=1e-5)


@pytest.mark.slow
def test_under_exact_any_an_adapter_trains_bitwise_alike_on_any_topology(tmp_path):
    first, *others = (launch(exactly, size, folder=tmp_path)[0] for size in (1, 2, 3))
    for other in others:
        for kind in KINDS:
            assert other[kind][0] == first[kind][0], kind
            assert same(other[kind][1], first[kind][1]), kind
