"""The objective of a run, made from its recipe and what its dataset holds."""

import numpy as np

from data.dataset import Dataset
from trainer.adapters.adapt import prompted
from trainer.objectives.base import Objective
from trainer.objectives.causal import Causal
from trainer.objectives.rows import kind_of
from trainer.recipe import Recipe


def objective_of(recipe: Recipe, dataset: Dataset) -> Objective:
    """The objective of `recipe` on `dataset`, the first of its sources; all have its kind and tokenizer.

    Raises:
        UserError: the family, the objective and the dataset don't go together.
    """
    kind_of(recipe, dataset)
    tokenizer = dataset.tokenizer()
    made = Causal(recipe.model.attention, np.asarray(tokenizer.piece_bytes))
    return prompted(made, recipe, recipe.model.vocab_size or tokenizer.padded_vocab_size)
