"""Greedy and beam search against `transformers.generate`, token by token, on the same weights, in every family.

Prompts of unlike lengths run as one batch: transformers pads a decoder's on the left and masks, ours pad on the right.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer import test_decoder_hf as decoders
from tests.trainer import test_encoders_hf as encoders
from tests.trainer.families import VOCABULARY, built
from trainer.generate import generate
from trainer.generation.sampling import probabilities
from trainer.generation.settings import Decoding

FAMILIES = ("llama", "llama untied", "llama linear", "gpt2", "t5", "t5 tied", "transformer")
SPREAD = {"gpt2": 0.5}
PAD, START, NEW = 0, 1, 18
ENDS = [2, 7, 11, 19, 23, 40]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalised": {"repetition_penalty": 1.4, "min_new_tokens": 3},
    "greedy, no repeats": {"no_repeat_ngram_size": 2},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "beams, early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    "beams, never": {"num_beams": 2, "early_stopping": "never"},
    "beams, never, long": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beams, never, short": {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
    "beams, all at once": {
        "num_beams": 5, "length_penalty": 0.6, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2,
        "min_new_tokens": 4, "num_return_sequences": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, which takes seconds to load, and is quiet."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def pair(hf: Any, family: str) -> tuple[Any, Any]:
    """Our model and theirs, with the same weights, whose texts neither all end nor all go on."""
    if family == "t5 tied":
        theirs, ours = encoders.t5(hf, True), built("t5", num_decoder_layers=3, head_dim=10, tie_word_embeddings=True)
        encoders.shared(theirs, ours)
    elif family == "t5":
        theirs, ours = encoders.t5(hf, False), built("t5", num_decoder_layers=3, head_dim=10, tie_word_embeddings=False)
        encoders.shared(theirs, ours)
    elif family == "transformer":
        theirs, ours = encoders.marian(hf), built("transformer", num_decoder_layers=3)
        encoders.shared(theirs, ours, {"final_logits_bias": theirs.final_logits_bias})
    else:
        ours = decoders.ours(decoders.config(family, initializer_range=SPREAD.get(family, 0.12)))
        theirs = decoders.theirs(hf, ours)
    return ours.eval(), theirs


@pytest.fixture(scope="module", params=FAMILIES)
def models(hf: Any, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return pair(hf, request.param)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (size,), generator=generator).tolist() for size in (1, 3, 7, 15, 9, 9)]


def padded(asked: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    widest = max(map(len, asked))
    rows, real = [], []
    for prompt in asked:
        filler = [PAD] * (widest - len(prompt))
        rows.append(filler + prompt if left else prompt + filler)
        real.append([0] * len(filler) + [1] * len(prompt) if left else [1] * len(prompt) + [0] * len(filler))
    return torch.tensor(rows), torch.tensor(real)


def expected(theirs: Any, asked: list[list[int]], way: dict[str, Any]) -> list[list[list[int]]]:
    """What transformers makes of them, without what ends a text."""
    seq2seq = theirs.config.is_encoder_decoder
    ids, real = padded(asked, left=not seq2seq)
    more = {"num_beams": 1} | ({"decoder_start_token_id": START} if seq2seq else {}) | way
    if theirs.config.model_type == "t5":
        more["use_cache"] = False  # theirs has a place for as many layers as the encoder has
    made = theirs.generate(
        ids, attention_mask=real, do_sample=False, max_new_tokens=NEW, eos_token_id=ENDS, pad_token_id=PAD, **more
    )
    texts = [row[1 if seq2seq else ids.size(1) :] for row in made.tolist()]
    cut = [text[: next((at for at, token in enumerate(text) if token in ENDS), len(text))] for text in texts]
    if "no_repeat_ngram_size" in way and len(asked) > 1 and any(PAD in text for text in cut):
        return [
            expected(theirs, [prompt], way)[0] for prompt in asked
        ]  # it takes padding for text, which may not repeat
    copies = way.get("num_return_sequences", 1)
    return [cut[first : first + copies] for first in range(0, len(cut), copies)]


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_those_of_transformers_token_by_token(models, way):
    ours, theirs = models
    asked = prompts()
    decoding = Decoding(NEW, **WAYS[way])
    made = generate(ours, asked, decoding, eos_id=ENDS, start_id=START)
    assert made == expected(theirs, asked, WAYS[way])
    assert made == [generate(ours, [prompt], decoding, eos_id=ENDS, start_id=START)[0] for prompt in asked]


def test_a_search_for_short_texts_goes_on_while_a_running_beam_could_end_above(hf):
    """A model that is sure of itself: two poor texts end at once, and a better, longer one comes later."""
    ours = decoders.ours(decoders.config("llama untied", initializer_range=0.12)).eval()
    with torch.no_grad():
        ours.lm_head.weight.mul_(10)
    theirs, ends = decoders.theirs(hf, ours), list(range(2, VOCABULARY, 8))
    prompts = torch.randint(3, VOCABULARY, (40, 4), generator=torch.Generator().manual_seed(4))[30:]
    made = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=NEW, eos_token_id=ends,
        pad_token_id=PAD, num_beams=2, early_stopping="never", length_penalty=-1.0,
    )  # fmt: skip
    texts = [[text[: next(at for at, token in enumerate(text) if token in ends)]] for text in made[:, 4:].tolist()]
    decoding = Decoding(NEW, num_beams=2, early_stopping="never", length_penalty=-1.0)
    assert generate(ours, prompts.tolist(), decoding, eos_id=ends) == texts
    assert len(texts[6][0]) == 5


def test_some_texts_end_and_some_do_not(hf):
    """Else the tests above would say nothing of one or the other."""
    for family in FAMILIES:
        ours, _ = pair(hf, family)
        lengths = set()
        for way in WAYS.values():
            made = generate(ours, prompts(), Decoding(NEW, **way), eos_id=ENDS, start_id=START)
            lengths |= {len(text) for texts in made for text in texts}
        assert NEW in lengths, family
        assert len(lengths) > 2, family


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(0.7, 0, 1.0, 0.0), (1.3, 9, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (0.9, 0, 1.0, 0.2), (1.1, 20, 0.7, 0.05)],
)
def test_chances_are_those_of_the_processors_of_transformers(hf, temperature, top_k, top_p, min_p):
    logits = 3 * torch.randn(50, 60, generator=torch.Generator().manual_seed(1))
    chain = [hf.TemperatureLogitsWarper(temperature)]
    chain += [hf.TopKLogitsWarper(top_k)] if top_k else []
    chain += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [hf.MinPLogitsWarper(min_p)] if min_p else []
    theirs = logits
    for each in chain:
        theirs = each(torch.zeros(50, 1, dtype=torch.int64), theirs)
    ours = probabilities(logits, temperature, top_k, top_p, min_p)
    assert ((ours > 0) == (theirs > -torch.inf)).all()
    assert torch.allclose(ours, theirs.softmax(-1), atol=1e-6)
