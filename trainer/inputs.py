"""What a run reads, opened and checked against its recipe before anything is spent."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.order import Order
from data.packing import Fill, fill
from data.reader import LocalReader, layout, longest_document
from data.shards import Index
from data.tasks import encode_prompt
from data.tokenizer import Tokenizer
from trainer.recipe import Recipe

VALID = "valid"


@dataclass(frozen=True)
class Inputs:
    """A dataset seen through a recipe."""

    dataset: Dataset
    context: int
    packing: Literal["chop", "best_fit"]
    train: Index
    order: Order
    vocab_size: int
    """Rows of the model's embedding."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that made the shards."""
        return self.dataset.tokenizer()

    @property
    def tokens_per_byte(self) -> float:
        """Of the training split."""
        return self.train.tokens / self.train.text_bytes

    @cached_property
    def fill(self) -> Fill:
        """How documents fill the rows of an epoch."""
        return fill(self.train, self.context, self.packing)

    def reader(self) -> LocalReader:
        """A reader of the training rows."""
        return LocalReader(self.train, self.order, self.context)

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text to be continued, as the dataset's own rows would begin."""
        if self.dataset.kind == "examples":
            return encode_prompt(self.tokenizer, text).tolist()
        return self.tokenizer.encode(text).tolist() or [self.tokenizer.eos_id]

    @cached_property
    def fixed(self) -> tuple[LocalReader, int] | None:
        """A reader of the validation rows in an order of their own, and how many there are; None without any."""
        index = self.dataset.index(VALID)
        if not index.shards:
            return None
        try:
            order = Order(layout(index, self.context, self.packing), 0, len(index.shards))
        except UserError:
            if self.packing == "best_fit":  # no plan, or a damaged one
                raise
            return None  # fewer tokens than one row
        return LocalReader(index, order, self.context), order.rows_per_epoch


def open_inputs(recipe: Recipe) -> Inputs:
    """Open the recipe's dataset.

    Raises:
        UserError: it is missing, damaged or of another tokenizer, its shards hold no row of this context,
            `model.vocab_size` is smaller than the tokenizer's, or an example or a prompt is too long for the context.
    """
    dataset = load_dataset(Path(recipe.data.dataset))
    train = dataset.index("train")
    pieces = dataset.tokenizer().vocab_size
    vocab_size = recipe.model.vocab_size or dataset.tokenizer().padded_vocab_size
    if vocab_size < pieces:
        raise UserError(
            f"model.vocab_size {vocab_size} is smaller than the {pieces} pieces of the tokenizer of {dataset.folder}: "
            "set it to null, or to at least that"
        )
    order = Order(layout(train, recipe.model.context, recipe.data.packing), recipe.seed, recipe.data.window)
    inputs = Inputs(dataset, recipe.model.context, recipe.data.packing, train, order, vocab_size)
    if train.kind == "examples":
        longest = max(longest_document(dataset.index(split)) for split in ("train", VALID))
        room = recipe.model.context + 1
        if longest > room:
            raise UserError(
                f"the longest example of {dataset.folder} has {longest} tokens, and a context of "
                f"{recipe.model.context} takes {room}: build it with task.max_tokens={room}"
            )
    for prompt in recipe.evaluate.prompts:
        length = len(inputs.encode_prompt(prompt))
        if length >= recipe.model.context:
            raise UserError(
                f"evaluate.prompts: {prompt[:40]!r} has {length} tokens, which leaves no room in a context of "
                f"{recipe.model.context}: shorten it"
            )
    return inputs
