"""How an update's rows lie on the ranks: pure arithmetic, the same for the feed, the plan and the promise."""

from dataclasses import dataclass

from trainer.recipe import Recipe
from trainer.sizes import MOST_ROWS


@dataclass(frozen=True)
class Shape:
    """How a global batch lies on the ranks."""

    micro_batch: int
    """Rows of one forward on one rank."""
    accumulation: int
    """Forwards of one rank in one update."""
    filler: int
    """Rows of no weight, where the ranks and micro-batches don't divide the batch."""

    @classmethod
    def of(cls, recipe: Recipe, ranks: int) -> "Shape":
        """The recipe's batch on so many ranks; a micro-batch is never larger than a rank's share.

        Under `exact: any` it doesn't depend on the ranks: by itself a quarter of the batch, so that four share it.
        Rows that must lie together do: it is a multiple of `objective.together`, which divides the batch.
        """
        rows, unit = recipe.train.batch_rows, recipe.objective.together
        most = max(unit, MOST_ROWS // unit * unit)

        def share(parts: int) -> int:
            return -(-rows // (parts * unit)) * unit

        if recipe.engine.exact == "any":
            micro_batch = min(recipe.engine.micro_batch or min(most, share(4)), rows)
        else:
            micro_batch = min(recipe.engine.micro_batch or most, share(ranks))
        accumulation = -(-rows // (micro_batch * ranks))
        return cls(micro_batch, accumulation, accumulation * micro_batch * ranks - rows)
