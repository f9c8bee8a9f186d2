"""BERT, T5 and the Transformer against transformers' classes: names, logits, gradients of one step, generation."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainer.families import VOCABULARY, built, gradients, padded, real, scatter, tokens
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.models.head import LM, Head

SOURCE, REAL = tokens(3, 40), real([40, 23, 7], 40)
PADDING = padded(REAL)
TARGET = tokens(3, 30, seed=1)
LABELS = TARGET.roll(-1, 1).masked_fill(~real([30, 17, 30], 30), -100)
TYPES = (torch.arange(40) > 9).long().expand(3, 40)

LOGITS = 3e-5
"""What logits, of which the largest are near 10, may differ by."""


@pytest.fixture(scope="session")
def hf() -> ModuleType:
    import transformers

    return transformers


def bert_config(hf: Any, **changes: Any) -> Any:
    return hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=48, layer_norm_eps=1e-5, **changes,
    )  # fmt: skip


def t5(hf: Any, tied: bool, **changes: Any) -> Any:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=10, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-5, tie_word_embeddings=tied, decoder_start_token_id=1, **changes,
    )  # fmt: skip
    model = hf.T5ForConditionalGeneration(config).eval()
    if not tied:  # as `from_pretrained` leaves it where a directory has both matrices
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def marian(hf: Any, **changes: Any) -> Any:
    config = hf.MarianConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=48, activation_function="relu",
        scale_embedding=True, pad_token_id=0, eos_token_id=95, decoder_start_token_id=1, forced_eos_token_id=None,
        **changes,
    )  # fmt: skip
    return hf.MarianMTModel(config).eval()


def shared(theirs: nn.Module, ours: nn.Module, buffers: dict[str, Tensor] | None = None) -> None:
    """Random weights for theirs, and the same for ours by identity of names; nothing may be left on either side."""
    scatter(theirs)
    given = {name: each for name, each in theirs.named_parameters() if each.requires_grad} | (buffers or {})
    taken = dict(ours.named_parameters())
    assert {name: each.shape for name, each in taken.items()} == {name: each.shape for name, each in given.items()}
    ours.load_state_dict(given, strict=False)
    assert all(torch.equal(taken[name], given[name]) for name in taken)


def same_gradients(ours: nn.Module, loss: Tensor, theirs: nn.Module, their_loss: Tensor, but: str = "") -> None:
    found, expected = gradients(ours, loss), gradients(theirs, their_loss)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    assert found.keys() - {but} == expected.keys()
    whole = nn.utils.get_total_norm(list(expected.values()))
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7 * whole, name


def summed(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum", label_smoothing=smoothing)


def test_bert_in_pretraining_is_that_of_hugging_face(hf: Any) -> None:
    theirs, ours = hf.BertForPreTraining(bert_config(hf)).eval(), built("bert", Head("pretraining"))
    shared(theirs, ours)
    labels, follows = SOURCE.masked_fill(~REAL | (SOURCE % 3 > 0), -100), torch.tensor([0, 1, -100])
    there = theirs(SOURCE, attention_mask=REAL.long(), token_type_ids=TYPES)
    words, sentences = ours(SOURCE, None, PADDING, TYPES)
    assert (words - there.prediction_logits)[REAL].abs().max() <= LOGITS
    assert (sentences - there.seq_relationship_logits).abs().max() <= LOGITS
    their_loss = summed(there.prediction_logits, labels) + 2.5 * summed(there.seq_relationship_logits, follows)
    same_gradients(ours, ours(SOURCE, labels, PADDING, TYPES, follows, 2.5), theirs, their_loss)


@pytest.mark.parametrize("kind", ["lm", "classes", "span", "sentence"])
def test_bert_under_each_head_is_that_of_hugging_face(hf: Any, kind: Any) -> None:
    name = {"lm": "MaskedLM", "classes": "SequenceClassification", "span": "QuestionAnswering", "sentence": ""}[kind]
    ours = built("bert", Head(kind, 3 if kind == "classes" else 0))
    if kind == "sentence":
        theirs = hf.BertModel(bert_config(hf), add_pooling_layer=False).eval()
        scatter(theirs)
        ours.load_state_dict({f"bert.{key}": each for key, each in theirs.named_parameters()})
    else:
        labels = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}} if kind == "classes" else {}
        theirs = getattr(hf, f"BertFor{name}")(bert_config(hf, **labels)).eval()
        shared(theirs, ours)
    there = theirs(SOURCE, attention_mask=REAL.long(), token_type_ids=TYPES)
    here = ours(SOURCE, None, PADDING, TYPES)
    if kind == "sentence":
        assert (here - there.last_hidden_state)[REAL].abs().max() <= LOGITS
    elif kind == "span":
        logits = torch.stack((there.start_logits, there.end_logits), -1)
        assert (here - logits)[REAL].abs().max() <= LOGITS
        ends = torch.tensor([3, 5, 6])
        choices = (z.masked_fill(~REAL[..., None], -torch.inf) for z in (here, logits))
        loss, their_loss = (summed(z[..., 0], ends) + summed(z[..., 1], ends + 1) for z in choices)
        same_gradients(ours, loss, theirs, their_loss)
    elif kind == "classes":
        assert (here - there.logits).abs().max() <= LOGITS
        wanted = torch.tensor([2, 0, 1])
        same_gradients(ours, summed(here, wanted), theirs, summed(there.logits, wanted))
    else:
        assert (here - there.logits)[REAL].abs().max() <= LOGITS
        wanted = SOURCE.masked_fill(~REAL | (SOURCE % 3 > 0), -100)
        same_gradients(ours, ours(SOURCE, wanted, PADDING, TYPES), theirs, summed(there.logits, wanted))


@pytest.mark.parametrize("model", ["t5", "t5 tied", "transformer"])
def test_encoder_decoders_are_those_of_hugging_face(hf: Any, model: str) -> None:
    if model == "transformer":
        theirs, ours = marian(hf), built("transformer", num_decoder_layers=3)
        theirs.final_logits_bias.normal_(generator=torch.Generator().manual_seed(3))
        shared(theirs, ours, {"final_logits_bias": theirs.final_logits_bias})
    else:
        theirs = t5(hf, tied=model == "t5 tied")
        ours = built("t5", num_decoder_layers=3, head_dim=10, tie_word_embeddings=model == "t5 tied")
        shared(theirs, ours)
    there = theirs(SOURCE, attention_mask=REAL.long(), decoder_input_ids=TARGET).logits
    here = ours(SOURCE, TARGET, padding=PADDING)
    assert (here - there).abs().max() <= LOGITS
    assert torch.equal(ours.decode(TARGET, ours.encode(SOURCE, PADDING), PADDING), here)
    but = "final_logits_bias" if model == "transformer" else ""  # there a buffer
    loss = ours(SOURCE, TARGET, LABELS, PADDING, 0.1)
    same_gradients(ours, loss, theirs, summed(there, LABELS, 0.1), but)


def test_weights_go_back_to_hugging_face_by_name(hf: Any) -> None:
    for theirs, family, head in (
        (hf.BertForPreTraining(bert_config(hf)), "bert", Head("pretraining")),
        (t5(hf, tied=False), "t5", LM),
        (marian(hf), "transformer", LM),
    ):
        more = {} if family == "bert" else {"num_decoder_layers": 3}
        ours = built(
            family, head, seed=5, **more, **({"head_dim": 10, "tie_word_embeddings": False} if family == "t5" else {})
        )
        missing, unexpected = theirs.load_state_dict(dict(ours.named_parameters()), strict=False)
        tied = (
            "embed_tokens.weight",
            "lm_head.weight",
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
        )
        assert all(name.endswith((*tied, "embed_positions.weight")) for name in missing)
        assert not unexpected
        theirs.eval()
        with torch.no_grad():
            if family == "bert":
                assert (theirs(SOURCE).prediction_logits - ours(SOURCE)[0]).abs().max() <= LOGITS
            else:
                assert (theirs(SOURCE, decoder_input_ids=TARGET).logits - ours(SOURCE, TARGET)).abs().max() <= LOGITS


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "transformer"])
def test_generated_text_is_that_of_hugging_face(hf: Any, family: str, beams: int) -> None:
    if family == "t5":
        theirs = t5(hf, tied=False, eos_token_id=95)
        ours = built("t5", num_decoder_layers=3, head_dim=10, tie_word_embeddings=False)
    else:
        theirs, ours = marian(hf), built("transformer", num_decoder_layers=3)
        theirs.final_logits_bias[0, 95] = -3.0  # else each text ends at once
    shared(theirs, ours, {"final_logits_bias": theirs.final_logits_bias} if family == "transformer" else None)
    expected = theirs.generate(
        SOURCE, attention_mask=REAL.long(), max_new_tokens=20, num_beams=beams, do_sample=False,
        no_repeat_ngram_size=1,  # else random weights call for one token again and again
        use_cache=False,  # theirs has as many layers as T5's encoder, not its decoder
    )  # fmt: skip
    prompts = [row[: int(count)] for row, count in zip(SOURCE.tolist(), REAL.sum(1), strict=True)]
    texts = generate(ours, prompts, Decoding(20, num_beams=beams, no_repeat_ngram_size=1), eos_id=95, start_id=1)
    wanted = [row[1:].tolist() for row in expected]  # without the start token
    assert len({token for row in wanted for token in row}) > 8
    assert texts == [[row[: row.index(95)] if 95 in row else row] for row in wanted]
