"""Attention maps against transformers' eager attention, which gives its probabilities by itself."""

from typing import Any

import pytest
import torch

from tests.trainer.families import built, tokens
from tests.trainer.test_decoder_hf import config, ours
from tests.trainer.test_decoder_hf import theirs as of_hugging_face
from tests.trainer.test_encoders_hf import bert_config, marian, shared, t5
from trainer.models.attention_maps import attention_maps

SOURCE, TARGET = tokens(1, 40), tokens(1, 30, seed=1)
CLOSE = 1e-5


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, which takes seconds to load, and is quiet."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def pair(hf: Any, family: str) -> tuple[Any, Any]:
    """One model as transformers has it, with attention that tells its probabilities, and as we have it."""
    match family:
        case "llama" | "gpt2":
            here = ours(config(family, **({"num_key_value_heads": 2} if family == "llama" else {})))
            there = of_hugging_face(hf, here)
        case "bert":
            here, there = built("bert"), hf.BertForMaskedLM(bert_config(hf)).eval()
            shared(there, here)
        case "t5":
            here = built("t5", num_decoder_layers=3, head_dim=10, tie_word_embeddings=False)
            there = t5(hf, tied=False)
            shared(there, here)
        case _:
            here, there = built("transformer", num_decoder_layers=3), marian(hf)
            shared(there, here, {"final_logits_bias": there.final_logits_bias})
    there.set_attn_implementation("eager")
    return there, here.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "transformer"])
def test_each_head_looks_where_it_does_in_hugging_face(hf: Any, family: str) -> None:
    theirs, model = pair(hf, family)
    if family in ("t5", "transformer"):
        told = theirs(SOURCE, decoder_input_ids=TARGET, output_attentions=True)
        wanted = {
            "encoder": told.encoder_attentions,
            "decoder": told.decoder_attentions,
            "cross": told.cross_attentions,
        }
        found = attention_maps(model, lambda: model(SOURCE, TARGET))
    else:
        wanted = {"self": theirs(SOURCE, output_attentions=True).attentions}
        found = attention_maps(model, lambda: model(SOURCE))
    assert found.keys() == wanted.keys()
    for kind, maps in found.items():
        expected = torch.cat(wanted[kind])
        assert maps.shape == expected.shape
        assert (maps - expected).abs().max() <= CLOSE
        assert maps.std(-1).max() > 0.03  # far from looking everywhere alike
