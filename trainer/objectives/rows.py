"""Which objective a run has, and the rows it asks for: what a plan needs to know, without torch."""

from data.dataset import Dataset
from data.errors import UserError
from trainer.objectives.tasks import task_kind
from trainer.recipe import Recipe


def kind_of(recipe: Recipe, dataset: Dataset) -> str:
    """The objective's kind, "auto" resolved.

    Raises:
        UserError: the family, the objective and the dataset don't go together.
    """
    if dataset.kind == "examples":
        return task_kind(recipe, dataset)
    if not recipe.model.is_decoder:
        raise UserError(f"no objective for a model of family {recipe.model.family} and {dataset.place}")
    if recipe.objective.kind not in ("auto", "causal"):
        raise UserError(
            f"objective.kind {recipe.objective.kind} learns from examples, and {dataset.place} holds text: leave it at "
            "auto, or build a dataset with kind=examples"
        )
    recipe.objective.refuse_unused("causal")
    return "causal"


def text_row(recipe: Recipe, context: int) -> tuple[int, int]:
    """Tokens of a row of text for a model that reads `context` tokens, and from one row's start to the next one's.

    causal: context + 1, and context: the last token of a row is only a label, and the next row's first input.
    """
    return context + 1, context
