"""A Hugging Face directory read without transformers: files, names, shapes, and what is taken over by a model."""

import json
import os

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer
from luban import app
from trainer.ancestor import with_ancestor
from trainer.hf.config import hugging_face_config
from trainer.hf.read import Directory
from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.models.initialize import initialize
from trainer.origin import take_over
from trainer.recipe import RECIPES, Model, Recipe
from trainer.run import origin_of

CONFIG = Model(context=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
VOCABULARY = 96


def drawn(config=CONFIG, head=LM, seed=7):
    model = build(config, VOCABULARY, head)
    initialize(model, seed)
    return model


@pytest.fixture
def directory(tmp_path):
    """A small llama as `save_pretrained` writes it; the model that it holds."""

    def make(name="llama", config=CONFIG, change=lambda weights: weights, form="safetensors", **fields):
        folder, model = tmp_path / name, drawn(config)
        folder.mkdir()
        weights = change({key: value.detach().clone() for key, value in model.named_parameters()})
        if form == "safetensors":
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        elif form == "shards":
            names = sorted(weights)
            halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
            for file, keys in halves.items():
                save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
            index = {key: file for file, keys in halves.items() for key in keys}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        else:
            torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old")
        said = hugging_face_config(config, VOCABULARY, eos_id=1) | fields
        (folder / "config.json").write_text(json.dumps(said))
        return folder, model

    return make


def taken(folder, config=CONFIG, head=LM, seed=9):
    model = build(config, VOCABULARY, head)
    origin = origin_of(str(folder))
    origin.check()
    return model, list(take_over(model, origin.name, *origin.weights(Recipe()), seed))


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "old"])
def test_weights_come_over_bit_by_bit_from_every_form_of_file(directory, form):
    folder, model = directory(form=form)
    found, notes = taken(folder)
    for (name, theirs), (_, ours) in zip(model.named_parameters(), found.named_parameters(), strict=True):
        assert torch.equal(theirs, ours), name
    assert notes == []
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": CONFIG.mlp_size, "head_dim": CONFIG.head_size}
    assert Directory(folder).model() == (CONFIG.model_copy(update=sizes), [])


def test_names_and_shapes_are_listed_without_the_weights(directory, monkeypatch):
    folder, model = directory(form="shards")
    monkeypatch.setattr("trainer.hf.read._Weights.tensor", lambda *_: pytest.fail("a tensor was read"))
    assert dict(Directory(folder).shapes()) == {name: tuple(each.shape) for name, each in model.named_parameters()}


def test_half_precision_becomes_fp32_and_integers_are_refused(directory):
    folder, model = directory(change=lambda weights: {name: each.bfloat16() for name, each in weights.items()})
    found, _ = taken(folder)
    assert found.model.norm.weight.dtype == torch.float32
    for theirs, ours in zip(model.parameters(), found.parameters(), strict=True):
        assert torch.equal(theirs.bfloat16().float(), ours)
    whole = lambda weights: {name: (each * 9).to(torch.int8) for name, each in weights.items()}  # noqa: E731
    quantized, _ = directory("quantized", change=whole)
    with pytest.raises(UserError, match=r"as torch\.int8: quantized weights can't be trained"):
        taken(quantized)


def test_the_bare_model_has_names_without_the_prefix_and_buffers_are_left_out(directory):
    def bare(weights):
        held = {name.removeprefix("model."): each for name, each in weights.items()}
        return held | {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}

    folder, model = directory(change=bare)
    found, notes = taken(folder)
    assert torch.equal(found.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert notes == []


def test_names_of_an_old_bert_are_brought_to_those_of_today(tmp_path):
    keys = {
        "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.gamma": "bert.embeddings.LayerNorm.weight",
        "encoder.layer.0.output.LayerNorm.beta": "bert.encoder.layer.0.output.LayerNorm.bias",
        "cls.predictions.transform.LayerNorm.gamma": "cls.predictions.transform.LayerNorm.weight",
    }
    tensors = {key: torch.zeros(2) for key in (*keys, "embeddings.position_ids")}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert set(Directory(tmp_path).shapes()) == set(keys.values())
    tensors["bert.embeddings.LayerNorm.weight"] = torch.zeros(2)
    tensors["bert.embeddings.LayerNorm.gamma"] = torch.zeros(2)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"both mean bert\.embeddings\.LayerNorm\.weight"):
        Directory(tmp_path).shapes()


def test_a_new_head_is_drawn_from_the_seed_and_a_lost_one_is_named(directory):
    untied = CONFIG.model_copy(update={"tie_word_embeddings": False})

    def classifier(weights):
        return {name: each for name, each in weights.items() if name != "lm_head.weight"} | {
            "score.weight": torch.ones(3, 32)
        }

    folder, model = directory(config=untied, change=classifier)
    (found, notes), (again, _), (other, _) = (taken(folder, untied, seed=seed) for seed in (9, 9, 10))
    assert notes == [
        f"a new head: lm_head.weight begin from random values, not from {folder}",
        f"not taken over from {folder}, which ends in another head: score.weight",
    ]
    assert found.lm_head.weight.std() > 0.01
    assert torch.equal(found.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(found.lm_head.weight, other.lm_head.weight)
    assert torch.equal(found.model.norm.weight, model.model.norm.weight)


def test_what_is_missing_or_strange_below_the_head_is_refused_by_name(directory):
    def without(weights):
        return {name: each for name, each in weights.items() if name != "model.layers.1.mlp.up_proj.weight"}

    folder, _ = directory("missing", change=without)
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight, and llama has that below"):
        taken(folder)
    strange, _ = directory("strange", change=lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    with pytest.raises(UserError, match=r"holds model\.layers\.0\.self_attn\.q_proj\.bias, and llama has not"):
        taken(strange)
    wrong, _ = directory("wrong", change=lambda w: w | {"model.norm.weight": torch.ones(33)})
    with pytest.raises(UserError, match=r"holds model\.norm\.weight as \(33,\), the model wants \(32,\)"):
        taken(wrong)


def test_tied_embeddings_that_differ_are_refused(directory):
    same, model = directory("same", change=lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    found, notes = taken(same)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
    assert notes == []
    other, _ = directory("other", change=lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight and model\.embed_tokens\.weight with different values"):
        taken(other)


def test_a_directory_that_changes_after_the_run_was_set_up_is_refused(directory):
    folder, _ = directory()
    pinned = origin_of(str(folder)).pinned()
    assert pinned.startswith(f"{folder}@sha256:")
    origin_of(pinned).check()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match="has changed since this run was set up"):
        origin_of(pinned).check()


def test_what_is_no_model_is_one_clear_error_each(directory, tmp_path):
    folder, _ = directory()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"holds neither recipe\.yaml, as a run does, nor config\.json"):
        origin_of(str(empty))
    (empty / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    with pytest.raises(UserError, match=r"type 'mamba' \(MambaForCausalLM\); Luban has llama, gpt2, bert, t5, marian"):
        origin_of(str(empty)).model()
    (empty / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        origin_of(str(empty)).model()
    (empty / "config.json").write_bytes((folder / "config.json").read_bytes())
    (empty / "tf_model.h5").write_text("")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin.*it holds tf_model\.h5"):
        origin_of(str(empty)).pinned()
    (empty / "pytorch_model.bin").write_text("no pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin can't be read as weights"):
        origin_of(str(empty)).shapes()
    (empty / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors can't be read as weights"):
        origin_of(str(empty)).shapes()
    (empty / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(UserError, match=r"names '\.\./model\.safetensors', which is no file beside it"):
        origin_of(str(empty)).shapes()
    (empty / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    with pytest.raises(
        UserError, match=r"lacks 1\.safetensors, of 1 shards that model\.safetensors\.index\.json names"
    ):
        origin_of(str(empty)).shapes()


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_nothing_from_outside_is_unpickled(directory, tmp_path):
    folder, _ = directory()
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"it is damaged, or holds more than tensors, which Luban doesn't unpickle\. Take"
    ):
        Directory(folder).shapes()


def test_a_shorter_context_takes_the_first_of_the_learned_positions(directory):
    bert = Model(context=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, family="bert")
    folder, model = directory(config=bert)
    found, notes = taken(folder, bert.model_copy(update={"context": 16}))
    name = "bert.embeddings.position_embeddings.weight"
    assert notes == [f"{name}: 16 of 64 positions taken over, up to model.context"]
    theirs = model.bert.embeddings.position_embeddings.weight
    assert torch.equal(found.bert.embeddings.position_embeddings.weight, theirs[:16])
    with pytest.raises(UserError, match=r"position_embeddings\.weight as \(64, 32\), the model wants \(128, 32\)"):
        taken(folder, bert.model_copy(update={"context": 128}))


def test_a_recipe_takes_over_the_model_of_a_directory_and_may_shorten_it(directory, tmp_path):
    folder, _ = directory()
    run = tmp_path / "new"
    made = with_ancestor(Recipe(), run, str(folder), set())
    assert made.model == Directory(folder).model()[0]
    assert made.ancestor == Directory(folder).pinned()
    short = Recipe(model=Model(context=32))
    assert with_ancestor(short, run, str(folder), {"model.context"}).model.context == 32
    long = Recipe(model=Model(context=128))
    with pytest.raises(UserError, match=r"model\.context is 64 in .* and can only become shorter, not 128"):
        with_ancestor(long, run, str(folder), {"model.context"})
    with pytest.raises(UserError, match=r"model\.hidden_size is 32 in .* and can't become 48: leave the model's"):
        with_ancestor(Recipe(model=Model(hidden_size=48)), run, str(folder), {"model.hidden_size"})


def test_a_shipped_recipes_sizes_give_way_to_those_of_the_weights_and_stated_ones_do_not(directory, tmp_path):
    folder, _ = directory()
    words = ("pretrain", "stdlib", "--from", str(folder), "--show")
    shown = yaml.safe_load(CliRunner().invoke(app, words).stdout)["model"]
    theirs = Directory(folder).model()[0].model_dump(mode="json")
    assert shown == theirs
    assert shown["hidden_size"] != 128
    for given in (("model.hidden_size=48",), ("--on", "slurm", "--array", "model.hidden_size=[48]")):
        refused = CliRunner().invoke(app, [*words, *given]).exception
        assert "can't become 48" in str(refused)
    own = tmp_path / "own.yaml"
    own.write_text((RECIPES / "stdlib.yaml").read_text())
    refused = CliRunner().invoke(app, ["pretrain", str(own), *words[2:]]).exception
    assert "can't become" in str(refused)


def test_a_dataset_of_another_tokenizer_is_refused_with_the_mend(directory, tmp_path):
    folder, _ = directory()
    words = [f"w{number}" for number in range(20)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    own = Tokenizer.load(folder)
    assert Directory(folder).refuse_other_tokenizer(own, "corpus") is None
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words[:9]]) + "\n")
    with pytest.raises(UserError, match=rf"14 pieces, .*: build corpus with tokenizer\.reuse={folder}"):
        Directory(folder).refuse_other_tokenizer(Tokenizer.load(tmp_path), "corpus")
    (folder / "vocab.txt").unlink()
    unsure = Directory(folder).refuse_other_tokenizer(own, "corpus")
    assert unsure is not None and f"whether the tokenizer of corpus is that of {folder} can't be told" in unsure


def test_what_is_of_another_model_is_refused_before_a_run_is_set_up(directory):
    whole, _ = directory("whole")
    Directory(whole).refuse_other_model(CONFIG, VOCABULARY)
    wrong, _ = directory("wrong", change=lambda w: w | {"model.norm.weight": torch.ones(33)})
    with pytest.raises(UserError, match=r"holds model\.norm\.weight as \(33,\), the model wants \(32,\)"):
        Directory(wrong).refuse_other_model(CONFIG, VOCABULARY)
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight as \(96, 32\), the model wants \(97, 32\)"):
        Directory(whole).refuse_other_model(CONFIG, VOCABULARY + 1)


def test_a_head_for_another_number_of_classes_is_drawn_anew_and_that_is_said(directory):
    three, _ = directory("three", change=lambda w: w | {"score.weight": torch.ones(3, 32)})
    found, notes = taken(three, head=Head("classes", 2))
    assert found.score.weight.shape == (2, 32) and not found.score.weight.eq(1).any()
    assert [note.split(":")[0] for note in notes] == [
        "a new head",
        f"not taken over from {three}, which ends in another head",
    ]
    same, notes = taken(three, head=Head("classes", 3))
    assert same.score.weight.eq(1).all() and notes == []


def test_weights_that_are_not_finite_are_refused_by_name(directory):
    folder, _ = directory(change=lambda w: w | {"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(UserError, match=r"holds values in model\.norm\.weight that are not finite"):
        taken(folder)
