"""How text is drawn from a model: one value, checked when it is made.

Names and meanings are those of transformers' GenerationConfig, so that a model card's settings can be copied; but a
setting that would have no effect is an error here, and text that runs past the context is one, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data.errors import UserError

LEAST = 1e-4
"""Below it a temperature divides logits out of fp32's range."""
MOST = 16
"""Beyond it a length to the power of `length_penalty` leaves fp64's range."""
EarlyStopping = Literal[False, True, "never"]


@dataclass(frozen=True)
class Decoding:
    """Settings of generation; without any but the first: greedy.

    Raises:
        UserError: settings out of range or at odds, all in one message.
    """

    max_new_tokens: int
    """The most tokens of a text, EOS included."""
    min_new_tokens: int = 0
    """EOS is impossible before that many."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities add up to p (arXiv:1904.09751); 1: all."""
    min_p: float = 0.0
    """Sample among the tokens that are at least this times as likely as the likeliest (arXiv:2407.01082); 0: all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or text hold already are divided by it where positive, else multiplied
    (arXiv:1909.05858); in beam search, log-probabilities are. 1: none."""
    no_repeat_ngram_size: int = 0
    """No n tokens come twice in prompt and text; 0: they may."""
    num_beams: int = 1
    """Beam search with so many; 1: none."""
    early_stopping: EarlyStopping = False
    """When a beam search ends: True, as soon as `num_beams` texts have ended; False, when the best running beam, as
    long as it is now, scores below the worst of them; never, when no running beam at its longest could score above."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability / (its new tokens, EOS included) to the power of this: above 0 favours
    longer texts, below 0 shorter ones."""
    num_return_sequences: int = 1
    """Texts of each prompt: samples, or the best of the beams."""
    seed: int = 0
    """With the same one, a prompt's nth sample is the same."""
    at_context: Literal["refuse", "stop"] = "refuse"
    """Where prompt and `max_new_tokens` are longer than the model's context: refuse, or end the text there."""

    def __post_init__(self) -> None:
        if problems := [*self._out_of_range(), *self._at_odds()]:
            raise UserError("\n".join(problems))

    def _out_of_range(self) -> list[str]:
        least = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0, "no_repeat_ngram_size": 0, "num_beams": 1}
        least |= {"num_return_sequences": 1, "seed": 0}
        found = []
        for name, limit in least.items():
            if getattr(self, name) < limit:
                found.append(f"{name} must be at least {limit} (got {getattr(self, name)})")
        if self.temperature != 0 and not LEAST <= self.temperature < math.inf:
            found.append(f"temperature must be 0 (the likeliest) or at least {LEAST} (got {self.temperature})")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be above 0 and at most 1 (got {self.top_p})")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must be from 0 to 1 (got {self.min_p})")
        if not 0 < self.repetition_penalty < math.inf:
            found.append(f"repetition_penalty must be above 0; 1 is none (got {self.repetition_penalty})")
        if not abs(self.length_penalty) <= MOST:
            found.append(f"length_penalty must be from -{MOST} to {MOST} (got {self.length_penalty})")
        if self.early_stopping not in (False, True, "never"):
            found.append(f"early_stopping must be false, true or never (got {self.early_stopping!r})")
        return found

    def _at_odds(self) -> list[str]:
        found = []
        if self.min_new_tokens > self.max_new_tokens >= 1:
            found.append(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.num_beams > 1 and self.temperature > 0:
            found.append(
                f"num_beams {self.num_beams} takes the likeliest texts and temperature {self.temperature} samples: set "
                "num_beams to 1 or temperature to 0"
            )
        if self.num_beams == 1:
            for name, value, none in (
                ("early_stopping", self.early_stopping, False),
                ("length_penalty", self.length_penalty, 1.0),
            ):
                if value != none:
                    found.append(f"{name} {value} means something only in beam search: set num_beams above 1")
        if self.temperature == 0:
            for name, none in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self, name) != none:
                    found.append(
                        f"{name} {getattr(self, name)} says which tokens to sample from, and temperature 0 takes the "
                        "likeliest: set temperature above 0"
                    )
            if self.num_return_sequences > self.num_beams:
                found.append(
                    f"num_return_sequences {self.num_return_sequences} is more than the {self.num_beams} that greedy "
                    "decoding gives: set temperature above 0 to sample"
                    if self.num_beams == 1
                    else f"num_return_sequences {self.num_return_sequences} is more than num_beams {self.num_beams}: "
                    "raise num_beams, or ask for fewer"
                )
        return found

    @property
    def sampled(self) -> bool:
        """Whether chance has a part in it."""
        return self.temperature > 0

    def limits(self, begun: Sequence[int], context: int) -> list[int]:
        """The most new tokens of each text.

        Args:
            begun: tokens that each holds in the decoder when it begins: its prompt, or an encoder-decoder's start.
            context: tokens that the model takes.

        Raises:
            UserError: one could grow past the context, and `at_context` is refuse.
        """
        room = [context - held for held in begun]
        if self.at_context == "refuse" and self.max_new_tokens > min(room):
            worst = room.index(min(room))
            raise UserError(
                f"prompt {worst + 1} has {begun[worst]} tokens, and {self.max_new_tokens} new ones make "
                f"{begun[worst] + self.max_new_tokens}: the model's context holds {context}. Ask for {room[worst]} new "
                "tokens at most, or shorten the prompt"
            )
        return [min(self.max_new_tokens, each) for each in room]


def early_stopping_of(word: str) -> EarlyStopping:
    """`early_stopping` as it is written on a command line: false, true or never.

    Raises:
        UserError: another word.
    """
    known: dict[str, EarlyStopping] = {"false": False, "true": True, "never": "never"}
    if word not in known:
        raise UserError(f"early_stopping must be false, true or never (got {word!r})")
    return known[word]
