"""What a run reads, opened and checked against its recipe before anything is spent."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.order.layout import Layout
from data.order.order import Order, Source, Stage
from data.order.packing import Fill, fill
from data.reader import LocalReader, layout
from data.remote.patience import Unreachable
from data.remote.remote import Remote
from data.remote.streaming import reader_of, refuse_small_cache
from data.shards import Index
from data.tasks.task import Task
from data.tasks.template import answer_end, encode_prompt
from data.tokenizer.tokenizer import Tokenizer
from trainer.objectives.pieces import refuse_missing_pieces
from trainer.objectives.rows import kind_of, row_labels, row_reads, text_row
from trainer.objectives.tasks import example_room, like, refuse_long
from trainer.recipe import Model, Recipe

VALID = "valid"
Packing = Literal["chop", "best_fit"]


@dataclass(frozen=True)
class Inputs:
    """Datasets seen through a recipe."""

    datasets: Mapping[str, Dataset]
    """By source, as the order numbers them."""
    context: int
    trains: Mapping[str, Index]
    """The training split of each source."""
    order: Order
    packing: Packing
    vocab_size: int
    """Rows of the model's embedding."""
    row: tuple[int, int]
    """Tokens of a row of text, and from one row's start to the next one's."""
    row_labels: float
    """Labels of a full row of text."""
    row_reads: int
    """Tokens that the model reads of it."""
    longest: int
    """Tokens of the longest row, whatever it holds."""

    @property
    def dataset(self) -> Dataset:
        """The first; all have its tokenizer and kind."""
        return next(iter(self.datasets.values()))

    @property
    def sources(self) -> list[Dataset]:
        """As the order numbers them."""
        return list(self.datasets.values())

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that made the shards."""
        return self.dataset.tokenizer()

    @property
    def tokens_per_byte(self) -> float:
        """Of the training splits."""
        held = self.trains.values()
        return sum(index.tokens for index in held) / sum(index.text_bytes for index in held)

    @property
    def epoch_tokens(self) -> int | None:
        """Label tokens of one pass over the corpus; None where rows aren't all of one text and length."""
        if self.dataset.kind != "text" or len(self.order.walks) > 1:
            return None
        found = next(iter(self.fills.values()))
        return found.labels if self.causal_text else round(found.rows * self.row_labels)

    def read_tokens(self, rows: int, labels: int) -> int:
        """Tokens that so many rows put before the model, of which so many are labels: what speed is counted in.

        Where every token is a label once, and of completions, the labels; of other examples, by their mean length.
        """
        if self.dataset.kind == "text":
            return labels if self.causal_text else rows * self.row_reads
        if self.dataset.info["task"]["causal"]:
            return labels
        held = self.trains.values()
        return rows * sum(index.tokens for index in held) // sum(index.documents for index in held)

    @property
    def causal_text(self) -> bool:
        """Whether rows are of text and overlap, so that each token is a label once."""
        return self.dataset.kind == "text" and self.row[0] != self.row[1]

    def epochs(self, stop: int) -> dict[str, float]:
        """Epochs of each source that positions [0, stop) hold, as metrics; nothing where there is one source."""
        if len(self.order.sources) == 1:
            return {}
        return {f"train/epoch/{name}": count for name, count in self.order.read(stop).items()}

    @cached_property
    def fills(self) -> dict[str, Fill]:
        """How documents fill the rows of an epoch, by source and context where rows have several lengths."""
        found = {}
        for walk in self.order.walks:
            length = walk.layout.row_length(self.context + 1)
            stride = walk.layout.stride or length - 1
            alike = length in (self.context + 1, self.row[0])
            name = walk.name if alike else f"{walk.name}, rows of {length} tokens"
            here = self.datasets[walk.name].remote is None
            found[name] = fill(self.trains[walk.name], stride, self.packing, here, walk.layout.overlap)
        return found

    def reader(self, lanes: Collection[int] | None = None) -> LocalReader:
        """A reader of the training rows, for one thread; of remote sources it fetches `lanes` only (None: all)."""
        return reader_of(list(self.trains.values()), self.order, self.longest - 1, self._remotes, lanes)

    def refuse_small_cache(self, lanes: Collection[int]) -> None:
        """Raise UserError where the cache can't hold what a node that reads `lanes` has open at once."""
        refuse_small_cache(self.order, list(self.trains.values()), self._remotes, lanes)

    @property
    def _remotes(self) -> list[Remote | None]:
        return [dataset.remote for dataset in self.datasets.values()]

    @property
    def task(self) -> Task | None:
        """What the examples are; None where the dataset is plain text."""
        return Task(**self.dataset.info["recipe"]["task"]) if self.dataset.kind == "examples" else None

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text to be continued, as the dataset's own rows would begin."""
        if self.task is not None:
            return encode_prompt(self.tokenizer, text, self.task).tolist()
        return self.tokenizer.encode(text).tolist() or [self.tokenizer.eos_id]

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a continuation: EOS, and in a chat what ends the assistant's turn."""
        if self.task is not None and self.task.kind == "chat":
            return answer_end(self.tokenizer, self.task)[0]
        return (self.tokenizer.eos_id,)

    def start_id(self, model: Model) -> int | None:
        """The token that an encoder-decoder's decoder begins with; None for other models."""
        if not model.is_encoder_decoder:
            return None
        return self.tokenizer.pad_id if model.decoder_start_id is None else model.decoder_start_id

    @cached_property
    def fixed(self) -> dict[str, tuple[LocalReader, int]]:
        """A reader of each source's validation rows in an order of their own, and how many; of those with any."""
        found = {}
        for name, dataset in self.datasets.items():
            index = dataset.index(VALID)
            if not index.shards:
                continue
            longest = max(shard.tokens for shard in index.shards)
            if index.kind == "text" and self.packing == "chop" and longest < self.row[0]:
                continue  # no row of this length
            laid = _laid(index, self.context, self.row, self.packing, dataset.remote is None)
            order = Order(laid, 0, len(index.shards))
            reader = reader_of([index], order, self.longest - 1, [dataset.remote], ahead=False)
            found[name] = reader, order.rows_per_epoch
        return found


def open_inputs(recipe: Recipe) -> Inputs:
    """Open the recipe's datasets.

    Raises:
        UserError: one is missing, damaged or of another tokenizer, its shards hold no row of this context or too few
            for the lanes, `model.vocab_size` is smaller than the tokenizer's, the sources end before the run, or an
            example or a prompt is too long for the context.
    """
    access = recipe.data.access
    datasets = {name: load_dataset(place, access) for name, place in recipe.data.places.items()}
    _refuse_unlike(datasets)
    trains = {name: dataset.index("train") for name, dataset in datasets.items()}
    first = next(iter(datasets.values()))
    pieces = first.tokenizer().vocab_size
    vocab_size = recipe.model.vocab_size or first.tokenizer().padded_vocab_size
    if vocab_size < pieces:
        raise UserError(
            f"model.vocab_size {vocab_size} is smaller than the {pieces} pieces of the tokenizer of {first.place}: "
            "set it to null, or to at least that"
        )
    packing, far = recipe.data.packing, {name for name, dataset in datasets.items() if dataset.remote}
    (kind,) = {kind_of(recipe, dataset) for dataset in datasets.values()}
    refuse_missing_pieces(recipe, kind, first.tokenizer())
    context = recipe.room
    if recipe.objective.augment.on and first.kind == "text":
        raise UserError(f"objective.augment changes examples, and {first.place} holds text: leave it out")
    row = text_row(recipe, context)
    longest = example_room(kind, context) if first.kind == "examples" else context + 1
    inputs = Inputs(
        datasets, context, trains, order_of(recipe, trains, far), packing, vocab_size, row,
        row_labels(recipe, row[0]), row_reads(recipe, row[0]), longest,
    )  # fmt: skip
    inputs.refuse_small_cache(range(1))  # at least that; a rank, which knows its node's lanes, asks again
    if first.kind == "examples" and packing == "chop":
        for dataset in datasets.values():
            refuse_long(dataset, kind, context)
    if recipe.evaluate.prompts and not (recipe.model.is_decoder or recipe.model.is_encoder_decoder):
        raise UserError(f"evaluate.prompts are continued, which a {recipe.model.family} can't: set it to []")
    for prompt in recipe.evaluate.prompts:
        length = len(inputs.encode_prompt(prompt))
        if length >= recipe.room:
            raise UserError(
                f"evaluate.prompts: {prompt[:40]!r} has {length} tokens, which leaves no room in a context of "
                f"{recipe.room}: shorten it"
            )
    return inputs


def classes_of(recipe: Recipe) -> tuple[str, ...] | None:
    """The classes of a recipe's examples, in the order of their ids; None where it has none, or its dataset is gone."""
    try:
        dataset = load_dataset(next(iter(recipe.data.places.values())), recipe.data.access)
    except (UserError, Unreachable):
        return None
    return tuple(dataset.info["task"]["classes"] or ()) or None if dataset.kind == "examples" else None


def order_of(recipe: Recipe, trains: Mapping[str, Index], far: Collection[str] = ()) -> Order:
    """The order of a run's rows.

    Args:
        far: the sources that are read from elsewhere.

    Raises:
        UserError: as `open_inputs`, of lanes, contexts and ends.
    """
    data = recipe.data
    caps = {name: each.max_epochs for name, each in data.sources.items()}
    sources = [Source(name, index.fingerprint, caps.get(name)) for name, index in trains.items()]
    stages = []
    for stage in data.plan:
        if (
            stage.context is not None
            and data.packing == "chop"
            and any(trains[name].kind == "examples" for name in stage.weights)
        ):
            raise UserError(
                f"the stage from row {stage.start} has a context of {stage.context}, and examples are a row each: "
                "leave it out, or pack them: data.packing=best_fit"
            )
        context = stage.context or recipe.room
        row = text_row(recipe, context)
        layouts = {name: _laid(trains[name], context, row, data.packing, name not in far) for name in stage.weights}
        stages.append(Stage(stage.start, stage.weights, layouts, stage.window or data.window))
    order = Order.staged(sources, stages, recipe.seed, data.lanes)
    rows = recipe.train.steps * recipe.train.batch_rows
    if order.end is not None and order.end < rows:
        raise UserError(
            f"train.steps {recipe.train.steps:,} x train.batch_rows {recipe.train.batch_rows} reads {rows:,} rows, and "
            f"at row {order.end:,} every source of the last stage has been read as often as its max_epochs lets it: "
            f"lower train.steps to {order.end // recipe.train.batch_rows:,}, raise max_epochs, or add a source"
        )
    return order


def _laid(index: Index, context: int, row: tuple[int, int], packing: Packing, here: bool) -> Layout:
    """As `layout`, for rows of text that an objective asks for."""
    length, stride = row
    if index.kind != "text":
        return layout(index, context, packing, here)
    if packing == "chop":
        return layout(index, stride, packing, here, length - stride)
    return layout(index, length - 1, packing, here)


def _refuse_unlike(datasets: Mapping[str, Dataset]) -> None:
    """Raise UserError where sources differ in what all rows must share, or two are the same."""
    name, first = next(iter(datasets.items()))
    shards = {first.info["splits"]["train"]["fingerprint"]: name}
    for other, dataset in list(datasets.items())[1:]:
        if dataset.kind != first.kind:
            raise UserError(f"source {name} is a dataset of {first.kind}, and {other} one of {dataset.kind}")
        if first.kind == "examples" and like(first.info["task"]) != like(dataset.info["task"]):
            raise UserError(f"source {name} holds examples of another task, template or set of classes than {other}")
        mine, theirs = (each.info["tokenizer"]["fingerprint"] for each in (first, dataset))
        if mine != theirs:
            raise UserError(
                f"source {name} was made with the tokenizer {mine[:12]}, and {other} with {theirs[:12]}: build "
                f"{dataset.place} again with tokenizer.reuse={first.place}"
            )
        fingerprint = dataset.info["splits"]["train"]["fingerprint"]
        if fingerprint in shards:
            raise UserError(
                f"sources {shards[fingerprint]} and {other} hold the same shards ({fingerprint[:12]}): its rows would "
                "be read by both. Name it once, with the sum of the weights"
            )
        shards[fingerprint] = other
