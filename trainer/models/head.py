"""What a model ends in: the head that an objective asks for."""

from dataclasses import dataclass
from typing import Literal

from trainer.recipe_model import Model


@dataclass(frozen=True)
class Head:
    """The layers above the last block, and what they give."""

    kind: Literal["lm", "pretraining", "classes", "span", "sentence", "adversarial"] = "lm"
    """lm: the family's own logits over the vocabulary; pretraining: those and next-sentence prediction (bert); classes:
    `outputs` numbers a sequence; span: two numbers a token, where an answer begins and ends; sentence: none, the last
    block's hidden states; adversarial: lm, and beside the model a discriminator of what it writes."""
    outputs: int = 0
    """Of `classes`: classes, or 1 for a number."""
    discriminator: Model | None = None
    """Of `adversarial`: the sizes of that encoder."""


LM = Head()
JUDGEMENT = Head("classes", 1)
"""What a discriminator ends in: the logit of a text's being real."""
