"""What a run takes its first weights from: a checkpoint of another run, or a Hugging Face directory.

Both say which model they hold, hand out its weights one by one, and leave a line of ancestry in the record. A new run
may end in another head: what is new is drawn from its seed, what is left over stays behind, and both are said.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer
from trainer.hf.families import of_family
from trainer.recipe import Model, Recipe
from trainer.recipe_adapter import Adapter

if TYPE_CHECKING:  # a command that starts a run leaves torch to its ranks
    from torch import Tensor

GENERATOR = "generator."
"""What the parameters begin with of the net that writes, in a run of two (`trainer/models/adversarial.py`)."""
CLASSES = ("classifier.", "score.")
"""What the parameters of a head for classes begin with."""
SHOWN = 6  # names of parameters in a sentence


class Origin(Protocol):
    """Weights to start from."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def pinned(self) -> str:
        """How the recipe of a run keeps it: the same weights for ever. Raises UserError where there are none."""
        ...

    def model(self) -> tuple[Model, list[str]]:
        """The `model` section of its weights, and what a person should hear. Raises UserError for another family."""
        ...

    def check(self) -> None:
        """Raise UserError unless it is whole and still what it was when it was pinned. Reads everything."""
        ...

    def adapter(self) -> Adapter:
        """That it was trained with."""
        ...

    def weights(self, recipe: Recipe) -> "tuple[Mapping[str, tuple[int, ...]], Callable[[str], Tensor]]":
        """Every parameter's shape as a run of `recipe` takes it over, and what reads one in fp32, by name.

        Raises:
            UserError: they can't be used; reading one may, too.
        """
        ...

    def refuse_other_tokenizer(self, tokenizer: Tokenizer, dataset: str) -> str | None:
        """Raise UserError where `tokenizer`, that of `dataset`, isn't its own; what it can't tell, in words."""
        ...

    def ancestry(self) -> dict[str, Any]:
        """What the record keeps of it."""
        ...


def generator_of(
    held: Mapping[str, tuple[int, ...]], weight: "Callable[[str], Tensor]"
) -> "tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]":
    """Shapes and reader of the weights of the net that writes, under the names that it has alone."""
    shapes = {name.removeprefix(GENERATOR): shape for name, shape in held.items() if name.startswith(GENERATOR)}
    return shapes, lambda name: weight(GENERATOR + name)


def take_over(
    model: Any, origin: str, held: Mapping[str, tuple[int, ...]], weight: "Callable[[str], Tensor]", seed: int
) -> Iterator[str]:
    """Give `model` the weights of an origin; yields what a person should hear. An adapter's own are left alone.

    Learned positions beyond the model's context are cut off. Of two nets, the generator takes over a plain model's,
    or that of two others.

    Args:
        origin: its name.
        held, weight: as `Origin.weights` gives them.

    Raises:
        UserError: they are of another model, in more than the head.
    """
    import torch

    from trainer.adapters.peft import is_own
    from trainer.models.initialize import initialize

    if hasattr(model, "generator") and {n: tuple(p.shape) for n, p in model.named_parameters()} != dict(held):
        if any(name.startswith(GENERATOR) for name in held):  # beside another discriminator
            held, weight = generator_of(held, weight)
        yield from take_over(model.generator, origin, held, weight, seed)
        initialize(model, seed, {name for name, _ in model.named_parameters() if not name.startswith(GENERATOR)})
        yield f"the generator begins with the weights of {origin}, the discriminator with random ones"
        return
    parameters = dict(model.named_parameters())
    wanted = {name: tuple(each.shape) for name, each in parameters.items() if name in held or not is_own(name)}
    new, left = refuse_unlike(model.config, model.head_names, origin, wanted, held)
    if new:
        initialize(model, seed, new)
        yield f"a new head: {_listed(sorted(new))} begin from random values, not from {origin}"
    if left:
        yield f"not taken over from {origin}, which ends in another head: {_listed(sorted(left))}"
    with torch.no_grad():
        for name in held:
            if name in wanted and name not in new:
                tensor = weight(name)
                if len(tensor) != len(parameters[name]):
                    yield f"{name}: {len(parameters[name])} of {len(tensor)} positions taken over, up to model.context"
                parameters[name].copy_(tensor[: len(parameters[name])])


def refuse_unlike(
    config: Model,
    heads: tuple[str, ...],
    origin: str,
    wanted: Mapping[str, tuple[int, ...]],
    held: Mapping[str, tuple[int, ...]],
) -> tuple[set[str], set[str]]:
    """The parameters that the model has alone, and those that the origin has alone; torch isn't needed.

    A head for another number of classes is both: what it learned is of no use.

    Args:
        heads: what the names of the model's own head begin with.
        wanted, held: shapes of the model's and of the origin's parameters.

    Raises:
        UserError: they differ below the head.
    """
    family = of_family(config.family)
    resized = {name for name in wanted.keys() & held.keys() if name.startswith(CLASSES) and wanted[name] != held[name]}
    new = {name for name in wanted.keys() - held.keys() if name not in family.zeros} | resized
    left = held.keys() - wanted.keys() | resized
    strange = sorted(name for name in new if not name.startswith(heads))
    strange += sorted(name for name in left if not name.startswith(family.heads))
    if strange:
        where = "lacks" if strange[0] in new else "holds"
        raise UserError(
            f"{origin} is of another model: it {where} {_listed(strange)}, and {family.model_type} "
            f"{'has that' if strange[0] in new else 'has not'} below its head"
        )
    for name in sorted(wanted.keys() & held.keys() - resized):
        if held[name] != wanted[name] and not _cut(family.positions, name, held[name], wanted[name]):
            raise UserError(
                f"{origin} holds {name} as {held[name]}, the model wants {wanted[name]}: it is of another model"
            )
    return new, left


def _cut(positions: str, name: str, held: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return name == positions and held[0] > wanted[0] and held[1:] == wanted[1:]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def is_pinned(ancestor: str) -> bool:
    """Whether a recipe's `ancestor` names one state of the weights for good: a step, or a directory's digest."""
    return re.search(r"@(\d+|sha256:[0-9a-f]{64})$", ancestor) is not None
