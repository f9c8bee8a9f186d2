"""Generation against `transformers.generate` on the same weights: greedy and four beams, one prompt and a batch.

Both are given the same prompts, theirs padded on the left, ours on the right, and make the same texts: the benchmark
ends where they don't. fp32, one thread, no EOS, so that each makes every token. `python -m tests.bench.generation
[ROUNDS]`.
"""

import sys
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bench.rounds import median, ratio, turns
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.hf.config import hugging_face_config
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.recipe import Model

VOCABULARY, NEW = 8192, 64
CONFIG = Model(
    context=512, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
    initializer_range=0.1,
)  # fmt: skip
BATCHES = {"a prompt of 192": (192,), "8 of 64 to 256": (64, 96, 128, 144, 176, 192, 224, 256)}


def pair() -> tuple[Decoder, Any]:
    """Ours and theirs, with the same weights."""
    ours = Decoder(CONFIG, VOCABULARY)
    initialize(ours, 1)
    config = LlamaConfig(**hugging_face_config(CONFIG, VOCABULARY, eos_id=2, pad_id=0))
    theirs: Any = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def main(rounds: int) -> None:
    """Print a line a case."""
    torch.set_num_threads(1)
    ours, theirs = pair()
    generator = torch.Generator().manual_seed(0)
    print(f"{'prompts':<18}{'beams':>6}{'ours, tok/s':>13}{'theirs':>9}{'ratio':>8}")
    for name, lengths in BATCHES.items():
        prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        widest = max(lengths)
        padded = torch.tensor([[0] * (widest - len(prompt)) + prompt for prompt in prompts])
        real = torch.tensor([[0] * (widest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        for beams in (1, 4):
            decoding = Decoding(NEW, num_beams=beams)

            def mine(decoding: Decoding = decoding, prompts: list[list[int]] = prompts) -> list[list[int]]:
                return [texts[0] for texts in generate(ours, prompts, decoding, eos_id=None)]

            def other(beams: int = beams, padded: Any = padded, real: Any = real) -> list[list[int]]:
                made = theirs.generate(
                    padded, attention_mask=real, do_sample=False, num_beams=beams, max_new_tokens=NEW,
                    eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
                return made[:, padded.size(1) :].tolist()

            if mine() != other():
                sys.exit(f"{name}, {beams} beams: the texts differ, so their speeds say nothing")
            seconds = turns({"ours": mine, "theirs": other}, rounds)
            speed = {each: len(lengths) * NEW / median(seconds[each]) for each in seconds}
            faster = ratio(seconds["ours"], seconds["theirs"])
            print(f"{name:<18}{beams:>6}{speed['ours']:>13.0f}{speed['theirs']:>9.0f}{faster:>7.2f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
