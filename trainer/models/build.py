"""A recipe's model section -> a model, its weights zero until they are drawn or loaded."""

from typing import Any

from torch import nn

from data.errors import UserError
from trainer.models.adversarial import Adversarial
from trainer.models.bert import Bert
from trainer.models.decoder import Decoder
from trainer.models.gpt2 import GPT2
from trainer.models.head import JUDGEMENT, LM, Head
from trainer.models.t5 import T5
from trainer.models.transformer import Transformer
from trainer.recipe import Model

CLASSES: dict[str, Any] = {"llama": Decoder, "gpt2": GPT2, "bert": Bert, "t5": T5, "transformer": Transformer}


def build(config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> nn.Module:
    """The model of `config.family`, in training mode.

    Args:
        vocab_size: rows of the embedding, in tokens.
        activation_checkpointing: blocks keep only their input for the backward pass and are computed twice.

    Raises:
        UserError: the family has no such head.
    """
    if head.discriminator is not None:
        generator = build(config, vocab_size, LM, activation_checkpointing)
        discriminator = build(head.discriminator, vocab_size, JUDGEMENT, activation_checkpointing)
        return Adversarial(generator, discriminator, head)
    made = CLASSES[config.family]
    if head.kind not in made.heads:
        raise UserError(
            f"a model of family {config.family} has no head for {head.kind}: it has {', '.join(made.heads)}"
        )
    return made(config, vocab_size, head, activation_checkpointing)
