"""Our adapters in the `peft` library: onto transformers' Llama, and from it onto ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from tests.trainer import toy
from tests.trainer.test_adapters import KINDS, adapted, of_family, recipe, shaken, written
from trainer.adapters import adapt, lora, peft
from trainer.hf.config import hugging_face_config
from trainer.models.head import LM, Head
from trainer.models.initialize import initialize

IDS = toy.rows(0)[0][:3]


@pytest.fixture(scope="session")
def libraries() -> Any:
    """transformers and peft, which take half a minute to import on a busy machine."""
    import peft as library
    import transformers

    return transformers, library


def llama(transformers: Any, kind: str) -> Any:
    """transformers' model with the toy's weights."""
    config = hugging_face_config(recipe(kind).model, toy.VOCAB, eos_id=0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    weights = {name: p for name, p in adapted(recipe(kind)).named_parameters() if not peft.is_own(name)}
    lost, odd = model.load_state_dict(weights, strict=False)
    assert not odd
    assert set(lost) <= {"lm_head.weight"}
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_with_our_adapter_what_we_compute(libraries, kind, tmp_path: Path):
    transformers, library = libraries
    model, folder = written(tmp_path, kind)
    theirs = library.PeftModel.from_pretrained(llama(transformers, kind), folder).eval()
    prefix = torch.tensor(getattr(model, "prefix", [])).expand(len(IDS), -1).long()
    with torch.no_grad():
        ours, expected = model(torch.cat([prefix, IDS], 1)), theirs(IDS).logits
        plain = adapted(recipe(kind)).eval()(torch.cat([prefix, IDS], 1))
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-2)  # it does something


def test_peft_merges_our_adapter_into_what_we_merge(libraries, tmp_path):
    transformers, library = libraries
    model, folder = written(tmp_path)
    theirs = library.PeftModel.from_pretrained(llama(transformers, "lora"), folder).merge_and_unload()
    lora.merge(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(theirs.get_parameter(name).data, parameter.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_we_compute_with_pefts_own_adapter_what_it_computes(libraries, kind, tmp_path):
    transformers, library = libraries
    if kind == "lora":
        told: Any = library.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    else:
        told = library.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    theirs = shaken(library.get_peft_model(llama(transformers, kind), told))
    theirs.save_pretrained(tmp_path)
    chosen = recipe(kind)
    chosen = chosen.model_copy(update={"adapter": chosen.adapter.model_copy(update={"source": str(tmp_path)})})
    model, notes = adapted(recipe(kind)).eval(), []
    adapt.begin_adapter(model, chosen, notes)
    assert notes == [f"the adapter begins with the weights in {tmp_path}"]
    prefix = torch.tensor(getattr(model, "prefix", [])).expand(len(IDS), -1).long()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.cat([prefix, IDS], 1)), theirs(IDS).logits, rtol=1e-4, atol=1e-5)


CLASSES = Head("classes", 3)


@pytest.mark.parametrize(
    ("kind", "family", "head", "made"),
    [
        ("lora", "gpt2", LM, "GPT2LMHeadModel"),
        ("lora", "bert", CLASSES, "BertForSequenceClassification"),
        ("prompt", "bert", CLASSES, "BertForSequenceClassification"),
        ("prompt", "bert", Head("span"), "BertForQuestionAnswering"),
    ],
)
def test_peft_takes_our_adapters_of_other_families_and_their_new_heads(libraries, kind, family, head, made, tmp_path):
    transformers, library = libraries
    chosen = of_family(family, kind)
    if kind == "prompt" and head == CLASSES:  # as the refusal says
        chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"trainable": ("!bert.pooler.*",)})})
    model = adapt.model_of(chosen, toy.VOCAB, head)
    initialize(model, 1)
    adapt.begin_adapter(model, chosen, [])
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not peft.is_own(name)}
    shaken(model)
    learned = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    peft.write(tmp_path, model, chosen.adapter, learned, base, "base")
    config = transformers.AutoConfig.for_model(**hugging_face_config(chosen.model, toy.VOCAB, head, eos_id=0, pad_id=0))
    theirs = getattr(transformers, made)(config).eval()
    assert not theirs.load_state_dict(base, strict=False).unexpected_keys
    theirs = library.PeftModel.from_pretrained(theirs, tmp_path).eval()
    prefix = torch.tensor(getattr(model, "prefix", [])).expand(len(IDS), -1).long()
    with torch.no_grad():
        ours, found = model(torch.cat([prefix, IDS], 1)), theirs(IDS, attention_mask=torch.ones_like(IDS))
        said = found.logits if "logits" in found else torch.stack((found.start_logits, found.end_logits), -1)
    torch.testing.assert_close(ours, said, rtol=1e-4, atol=1e-5)


def test_a_pooler_that_learned_beside_a_prompt_is_refused_with_the_mend(tmp_path):
    model = adapt.model_of(of_family("bert", "prompt"), toy.VOCAB, CLASSES)
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(UserError, match=r"weights of bert.pooler.dense learned .*trainable=\['!bert.pooler.dense"):
        peft.write(tmp_path / "adapter", model, of_family("bert", "prompt").adapter, learned, {}, "base")
    assert not (tmp_path / "adapter").exists()
