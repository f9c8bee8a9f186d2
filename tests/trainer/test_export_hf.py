"""Exports of every family through transformers and back: the same logits, the same weights, or nothing at all."""

import io
import json
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sentencepiece import SentencePieceTrainer

from data.build.build import build as build_dataset
from data.dataset import load_dataset
from data.errors import UserError
from data.recipe import DatasetRecipe, Source, Split, TokenizerTraining
from data.tasks.chat import chat_parts
from data.tasks.task import Task
from data.tasks.template import encode_parts
from tests.corpora import texts
from tests.trainer.generation.speaker import loaded
from tests.trainer.generation.test_chat import CONTEXT, JINJA, TEMPLATES
from tests.trainer.held_run import held_run, read_json
from tests.trainer.objectives.datasets import built
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.hf import check, export
from trainer.hf.card import lineage_digest
from trainer.hf.layout import Layout
from trainer.hf.read import Directory
from trainer.models.build import build
from trainer.origin import take_over
from trainer.recipe import Recipe
from trainer.run import read_recipe

RUNS = {
    "llama": {"model.num_key_value_heads": 1, "model.rope_theta": 5e4},
    "llama3": {
        "model.num_key_value_heads": 2, "model.head_dim": 32, "model.tie_word_embeddings": False,
        "model.rope_scaling": {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "gpt2": {"model.family": "gpt2", "model.tie_word_embeddings": False},
    "bert": {"model.family": "bert", "model.layer_norm_eps": 1e-12},
    "bert_pairs": {"model.family": "bert", "objective.next_sentence": True},
    "t5": {"model.family": "t5", "model.tie_word_embeddings": False, "model.head_dim": 8},
    "t5_tied": {"model.family": "t5", "model.num_decoder_layers": 1},
    "transformer": {"model.family": "transformer"},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(texts(120_000)):
        (folder / f"{number:04d}.txt").write_text(text, "utf-8")
    recipe = DatasetRecipe(
        name="plain", sources=(Source(kind="folder", path=folder, licence="CC-BY-4.0", name="pages"),),
        split=Split(valid=0.2), tokenizer=TokenizerTraining(vocab_size=1280), workers=1,
    )  # fmt: skip
    return build_dataset(recipe, tmp_path_factory.mktemp("datasets") / "plain").folder


@pytest.fixture(scope="module")
def t5_dataset(tmp_path_factory) -> Path:
    """Text cut by a model as a T5 directory has it: spiece.model, and nothing that lists its sentinels."""
    folder, model = tmp_path_factory.mktemp("t5"), io.BytesIO()
    held = list(texts(120_000))
    SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in held for line in text.split("\n") if line), model_writer=model,
        vocab_size=1000, hard_vocab_limit=False, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text('{"model_type": "t5"}')
    (folder / "texts").mkdir()
    for number, text in enumerate(held):
        (folder / "texts" / f"{number:04d}.txt").write_text(text, "utf-8")
    recipe = DatasetRecipe(
        name="spans", sources=(Source(kind="folder", path=folder / "texts", licence="CC-BY-4.0"),),
        split=Split(valid=0.2), tokenizer=TokenizerTraining(reuse=folder), workers=1,
    )  # fmt: skip
    return build_dataset(recipe, tmp_path_factory.mktemp("datasets") / "spans").folder


@pytest.mark.usefixtures("here")
def test_a_t5_with_its_own_sentencepiece_goes_out_with_a_tokenizer_of_the_same_ids(tmp_path, t5_dataset):
    said: list[str] = []
    out, _ = exported(tmp_path, t5_dataset, "t5", said)
    assert said[1] == "its tokenizer gives the same ids for 4 texts"
    assert Directory(out).refuse_other_tokenizer(load_dataset(t5_dataset).tokenizer(), "spans") is None


@pytest.fixture
def here(monkeypatch) -> None:
    """transformers asked in this process, which has imported it once; `test_the_comparison_...` starts the real one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(check, "_ask", check._answer)


def exported(tmp_path, dataset, name="llama", said=None, **more) -> tuple[Path, torch.nn.Module]:
    run, model = held_run(tmp_path / name, dataset, **RUNS[name])
    export.export(str(run), tmp_path / "out", say=(said if said is not None else []).append, **more)
    return tmp_path / "out", model


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", RUNS)
def test_every_family_goes_out_with_the_same_logits_and_comes_back_bit_by_bit(tmp_path, dataset, name):
    said: list[str] = []
    out, model = exported(tmp_path, dataset, name, said)
    assert "the largest difference of an output is" in said[0]
    assert said[1] == "its tokenizer gives the same ids for 4 texts"
    origin = Directory(out)
    config, notes = origin.model()
    assert notes == []
    assert origin.refuse_other_tokenizer(load_dataset(dataset).tokenizer(), "plain") is None
    back = build(config, model.vocab_size, model.head)
    assert list(take_over(back, origin.name, *origin.weights(Recipe()), 9)) == []
    for (key, ours), (_, theirs) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), key
    recipe = read_recipe(tmp_path / name)
    own = config.model_copy(update={"vocab_size": None, "decoder_start_id": None, "head_dim": recipe.model.head_dim})
    same = {each: getattr(own, each) == getattr(recipe.model, each) for each in type(own).model_fields}
    assert {each for each, equal in same.items() if not equal} <= {
        "intermediate_size",
        "attention",
        "num_decoder_layers",
    }
    assert not any(path.name.startswith(".") for path in (*out.iterdir(), *tmp_path.iterdir()))


HEADS = {
    "bert_classes": ("classification", "encoder", {"model.family": "bert"}),
    "gpt2_classes": ("classification", "decoder", {"model.family": "gpt2"}),
    "llama_pairs": ("pair", "decoder", {"model.family": "llama"}),
    "bert_numbers": ("pair", "encoder", {"model.family": "bert"}),
    "bert_span": ("qa", "", {"model.family": "bert"}),
    "bert_sentences": (
        "classification",
        "encoder",
        {"model.family": "bert", "objective.kind": "contrastive", "model.residual_dropout": 0.1},
    ),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", HEADS)
def test_every_head_of_a_task_goes_out_with_the_same_outputs_and_its_classes_names(tmp_path, name):
    import transformers

    kind, template, given = HEADS[name]
    numbers = {"regression": True} if name == "bert_numbers" else {}
    tasks = built(tmp_path, kind, template, **numbers)
    said: list[str] = []
    run, model = held_run(tmp_path / name, tasks, **{"model.context": 64, **given})
    export.export(str(run), tmp_path / "out", say=said.append)
    assert "the largest difference of an output is" in said[0]
    if name == "bert_sentences":
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out")
    elif kind == "qa":
        theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    else:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert theirs.config.problem_type == ("regression" if numbers else "single_label_classification")
        assert theirs.config.num_labels == model.head.outputs == (1 if numbers else 3)
        assert numbers or theirs.config.id2label == {0: "0", 1: "1", 2: "2"}
    ours, held = dict(model.named_parameters()), dict(theirs.named_parameters())
    assert all(torch.equal(each, held[key if key in held else key.removeprefix("bert.")]) for key, each in ours.items())
    assert "inputs out as the run's rows are" in said[2]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_goes_out_with_its_template(tmp_path, template):
    import transformers

    task = Task(
        kind="chat", template=template, system='Be "kind".', max_tokens=CONTEXT[template],
        chat_template=JINJA if template == "jinja" else "",
    )  # fmt: skip
    rows = [json.dumps({"q": f"Is {n} odd?", "a": "Yes." if n % 2 else "No."}) for n in range(60)]
    held = loaded(tmp_path, task, rows, {"user": "q", "assistant": "a"}, CONTEXT[template])
    said: list[str] = []
    run, model = held_run(
        tmp_path / "chat", tmp_path / "dataset", **{"model.context": CONTEXT[template], "model.family": "llama"}
    )
    export.export(str(run), tmp_path / "out", say=said.append)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said[2] == "and lays 5 inputs out as the run's rows are"
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is 7 odd?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0].tolist() == held.inputs.encode_prompt("Is 7 odd?")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = generate(model, inputs["input_ids"].tolist(), Decoding(8), eos_id=held.inputs.ends)[0][0]
    found = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].size(1) :].tolist()
    assert found[: len(wanted)] == wanted
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is 7 odd?"}, {"role": "assistant", "content": "Yes."}], return_dict=False
    )
    turns = [("system", task.system), ("user", "Is 7 odd?"), ("assistant", "Yes.")]
    assert whole == encode_parts(held.inputs.tokenizer, chat_parts(turns, task, held.inputs.tokenizer)).tolist()


@pytest.mark.usefixtures("here")
def test_a_template_that_transformers_reads_otherwise_stays_here_and_it_is_said(tmp_path, monkeypatch):
    made = Layout.post_processor
    monkeypatch.setattr(
        Layout, "post_processor", lambda self, *given: made(replace(self, single=("sep", "$A")), *given)
    )
    tasks = built(tmp_path, "classification", "encoder")
    said: list[str] = []
    run, _ = held_run(tmp_path / "run", tasks, **{"model.context": 64, "model.family": "bert"})
    export.export(str(run), tmp_path / "out", say=said.append)
    why = "of 4 inputs with their control pieces 4 got other ids"
    assert said[2] == f"its tokenizer is not told the run's template: {why}"
    assert read_json(tmp_path / "out" / "tokenizer.json")["post_processor"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert why in card and "Control pieces are put in by templates" in card


@pytest.mark.usefixtures("here")
def test_a_wrong_weight_makes_the_export_refuse_and_leaves_nothing(tmp_path, dataset, monkeypatch):
    write = export.write_weights

    def permuted(folder, shapes, tensor, *more):
        def wrong(key):
            return tensor(key).flip(0) if key.endswith("q_proj.weight") else tensor(key)

        return write(folder, shapes, wrong, *more)

    monkeypatch.setattr(export, "write_weights", permuted)
    with pytest.raises(UserError, match=r"refused: model\.layers\.0\.self_attn\.q_proj\.weight doesn't read back"):
        exported(tmp_path, dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rms_norm_eps": 1e-3}),
        ("gpt2", {"activation_function": "relu"}),
        ("bert", {"num_attention_heads": 4}),
        ("t5", {"relative_attention_max_distance": 16}),
        ("transformer", {"scale_embedding": False}),
    ],
)
def test_a_config_that_means_another_computation_makes_the_export_refuse(tmp_path, dataset, monkeypatch, name, changes):
    made = export.Export.config
    monkeypatch.setattr(export.Export, "config", lambda asked: made(asked) | changes)
    with pytest.raises(UserError, match=r"the export is refused: compared with transformers on 4 validation rows"):
        exported(tmp_path, dataset, name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("here")
def test_shards_and_half_precision_are_loaded_too(tmp_path, dataset):
    said: list[str] = []
    out, model = exported(tmp_path, dataset, said=said, precision="bf16", shard_bytes=40_000)
    index = read_json(out / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(2 * each.numel() for each in model.parameters())
    for name in set(index["weight_map"].values()):
        with safe_open(out / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    origin = Directory(out)
    for name, parameter in model.named_parameters():
        assert torch.equal(origin.weight(name), parameter.bfloat16().float()), name


@pytest.mark.usefixtures("here")
def test_an_adapter_is_merged_into_what_is_exported(tmp_path, dataset):
    RUNS["lora"] = RUNS["llama"] | {"adapter.kind": "lora", "adapter.rank": 2, "ancestor": "/gone@7"}
    out, model = exported(tmp_path, dataset, "lora")
    layer = model.model.layers[0].self_attn.q_proj
    merged = layer.weight + layer.lora_B.weight @ layer.lora_A.weight * layer.scale
    assert torch.allclose(Directory(out).weight("model.layers.0.self_attn.q_proj.weight"), merged, atol=1e-6)
    assert "It began with the weights of gone, step 7" in (out / "README.md").read_text()


@pytest.mark.usefixtures("here")
def test_the_model_card_says_where_the_weights_come_from(tmp_path, dataset):
    said: list[str] = []
    out, model = exported(tmp_path, dataset, said=said)
    card = (out / "README.md").read_text("utf-8")
    info = read_json(dataset / "dataset.json")
    for fact in (
        "| pages | CC-BY-4.0 |", info["splits"]["train"]["fingerprint"], info["tokenizer"]["fingerprint"],
        f"{sum(each.numel() for each in model.parameters()):,} parameters", lineage_digest(tmp_path / "llama", 32),
        "| updates | 4 of 8 rows |", "| rows read | 32, of them skipped 0 |", "loss 2.5000", said[0],
        "pipeline_tag: text-generation",
    ):  # fmt: skip
        assert fact in card
    assert lineage_digest(tmp_path / "llama", 24) != lineage_digest(tmp_path / "llama", 32)
    ids = {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    assert read_json(out / "generation_config.json") == ids
    assert read_json(out / "tokenizer_config.json")["model_max_length"] == 32


@pytest.mark.usefixtures("here")
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, dataset, monkeypatch):
    run, _ = held_run(tmp_path / "llama", dataset, **RUNS["llama"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="there is there already"):
        export.export(str(run), tmp_path / "there")
    with pytest.raises(UserError, match=r"no checkpoint 9; steps with one: 4"):
        export.export(f"{run}@9", tmp_path / "out")
    prefix, _ = held_run(tmp_path / "prefix", dataset, **{"model.attention": "prefix"})
    with pytest.raises(UserError, match=r"a prompt in both directions \(model.attention prefix\), which no llama"):
        export.export(str(prefix), tmp_path / "out")
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'luban\[hf\]'; or export unchecked, by --no-check"):
        export.export(str(run), tmp_path / "out")
    said: list[str] = []
    export.export(str(run), tmp_path / "out", checked=False, say=said.append)
    assert said[0] == "not compared with transformers: --no-check"
    assert "It was not compared with transformers (--no-check)." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gguf_file_holds_the_same_weights_and_gives_the_same_logits(tmp_path, dataset, precision):
    import gguf

    said: list[str] = []
    file = tmp_path / "model.gguf"
    exported(tmp_path, dataset, said=said, precision=precision, gguf=file)
    assert "read by transformers, its logits differ by" in said[2]
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count_kv"] == 1
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == reader.tensors[0].shape[1]


@pytest.mark.usefixtures("here")
def test_gguf_of_another_family_or_over_a_file_is_refused(tmp_path, dataset, monkeypatch):
    run, _ = held_run(tmp_path / "gpt2", dataset, **RUNS["gpt2"])
    with pytest.raises(UserError, match=r"--gguf writes models of family llama, and .* is a gpt2"):
        export.export(str(run), tmp_path / "out", gguf=tmp_path / "model.gguf")
    run, _ = held_run(tmp_path / "llama", dataset, **RUNS["llama"])
    (tmp_path / "there.gguf").touch()
    with pytest.raises(UserError, match=r"there\.gguf is there already"):
        export.export(str(run), tmp_path / "out", gguf=tmp_path / "there.gguf")
    found = util.find_spec
    monkeypatch.setattr("trainer.hf.gguf.find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(UserError, match=r"pip install 'luban\[gguf\]'"):
        export.export(str(run), tmp_path / "out", gguf=tmp_path / "model.gguf")


@pytest.mark.slow
def test_the_comparison_runs_in_a_process_of_its_own(tmp_path, dataset):
    said: list[str] = []
    out, _ = exported(tmp_path, dataset, said=said)
    assert "the largest difference of an output is" in said[0]
    (out / "config.json").write_text(json.dumps(read_json(out / "config.json") | {"architectures": ["LlamaFor"]}))
    with pytest.raises(UserError, match=r"transformers can't load what was exported: .*LlamaFor"):
        check.compare(out, tmp_path / "q", {"real": torch.ones(1, 1, dtype=torch.bool)})
