"""The recipe's `objective`: what a model is asked to predict."""

from typing import Literal

from data.settings import Fixed, Section


class Objective(Section):
    """What is predicted, and how the loss counts it."""

    kind: Fixed[Literal["auto", "causal"]] = "auto"
    """causal: the next token; in a dataset of examples only their marked tokens count. auto: what the dataset and the
    family suggest; a decoder learns the next token."""
