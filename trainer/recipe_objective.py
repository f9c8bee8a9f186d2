"""The recipe's `objective`: what a model is asked to predict."""

from typing import Literal

from pydantic import Field

from data.errors import UserError
from data.settings import Fixed, Section

_ONLY: dict[str, tuple[str, ...]] = {
    "mask_rate": ("masked",),
    "whole_word": ("masked",),
    "next_sentence": ("masked",),
    "next_sentence_weight": ("masked",),
    "noise_density": ("span",),
    "mean_span": ("span",),
}
"""The objectives that have a use for a setting."""


class Objective(Section):
    """What is predicted, and how the loss counts it."""

    kind: Fixed[Literal["auto", "causal", "masked", "span", "prefix"]] = "auto"
    """causal: the next token; in a dataset of examples only their marked tokens count. masked: the tokens that were
    hidden, from both sides (BERT). span: the spans that were cut out, each after its sentinel (T5). prefix: the rest of
    a row from its beginning (encoder-decoders). auto: what the dataset and the family suggest; of text a decoder learns
    the next token, bert masked tokens, t5 and transformer spans."""
    mask_rate: Fixed[float] = Field(default=0.15, gt=0, lt=1)
    """masked: share of a row's tokens that are predicted. Of these 80 % are hidden behind the mask, 10 % are another
    token, 10 % stay as they are, so that the model can trust no token it sees (BERT)."""
    whole_word: Fixed[bool] = False
    """masked: hide all tokens of a word or none. Harder, hence often better: a hidden part of a word is easily guessed
    from the rest of it. Words longer than the row's share of masks are never hidden."""
    next_sentence: Fixed[bool] = False
    """masked: also tell whether the second part of a row follows the first; in half of the rows the second part is
    another row's. Later models leave it out (RoBERTa)."""
    next_sentence_weight: Fixed[float] = Field(default=1.0, gt=0)
    """masked: weight of a row's next-sentence loss beside the mean loss of its masked tokens; 1 in BERT."""
    noise_density: Fixed[float] = Field(default=0.15, gt=0, lt=1)
    """span: share of a row's tokens that are cut out."""
    mean_span: Fixed[float] = Field(default=3.0, ge=1)
    """span: mean length of what is cut out at one place, in tokens."""

    def refuse_unused(self, kind: str) -> None:
        """Raise UserError where a setting is given that the objective `kind` has no use for."""
        for setting, kinds in _ONLY.items():
            if kind not in kinds and getattr(self, setting) != type(self).model_fields[setting].default:
                raise UserError(
                    f"objective.{setting} means something only with objective {' or '.join(kinds)}, and this run's is "
                    f"{kind}: leave it out"
                )
