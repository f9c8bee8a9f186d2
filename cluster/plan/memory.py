"""Memory of one rank, by what holds it: at rest exactly, and at the worst moment of an update. Pure arithmetic.

At rest a rank holds what ZeRO leaves it: a sum of partitions. An update adds activations, the loss, gradients on their
way and copies of them, which come and go; so the update is walked through moment by moment, from the end of the
forward pass to the optimizer, and the largest sum is the peak. What a block keeps for the backward pass is in
`activations.py`. Against real ranks: `tests/bench/plan.py`.

An encoder-decoder is taken to read and to write a context of each row: an upper bound, as is a head over all tokens.

ZeRO 3 lets go of what it has fetched in groups, as its prefetching bound them; here it is taken to hold all of it
until the backward pass ends, which is at most 12 % of the peak too much where it was measured.

On a CPU a page that nothing was written to isn't held, so a bucket counts as far as it has been filled; a GPU's
allocator counts it whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

from cluster.plan.activations import FP32, around_blocks, block_activations, buffers
from trainer import sizes, zero
from trainer.adapters.shapes import adapted_shapes, learned, learning
from trainer.hf.families import of_family
from trainer.models.depth import rate_scales
from trainer.models.shapes import TABLES, block_of, grouped, parameter_shapes
from trainer.recipe import Recipe
from trainer.shape import Shape

INT64 = 8
CATEGORIES = {
    "weights": "what the forward pass multiplies with",
    "gathered": "weights of other ranks, fetched by ZeRO 3",
    "masters": "fp32 copy that the optimizer updates",
    "moments": "AdamW's two",
    "gradients": "this rank's, and those on their way to others",
    "activations": "what the backward pass needs again",
    "logits": "chunks of logits, and the loss's gradients",
    "buckets": "gradients being sent",
    "optimizer": "copies during the update itself",
    "exact": "float64 sums of exact: any",
}


@dataclass(frozen=True)
class Setup:
    """All that decides a rank's memory."""

    recipe: Recipe
    vocab_size: int
    ranks: int
    shape: Shape
    bf16: bool
    gpu: bool
    trained: dict[str, int]
    """Elements of each parameter that trains, in the model's order."""
    frozen: dict[str, int]
    groups: tuple[tuple[int, ...], ...]
    """Elements of the parameters of each optimizer group."""
    names: tuple[str, ...]
    """Of all parameters, in the model's order."""
    told: dict = field(repr=False)
    """DeepSpeed's configuration."""

    @classmethod
    def of(cls, recipe: Recipe, vocab_size: int, ranks: int, gpu: bool) -> "Setup":
        """The recipe on so many ranks, on GPUs or on CPUs."""
        shape, bf16 = Shape.of(recipe, ranks), recipe.engine.bf16(gpu)
        shapes = adapted_shapes(parameter_shapes(recipe.model, vocab_size), recipe)
        elements = {name: prod(dims) for name, dims in shapes.items()}
        learns = learned(elements, learning(recipe, new_head=False), of_family(recipe.model.family).heads)
        trained = {name: count for name, count in elements.items() if name in learns}
        elements_learned = sum(trained.values())
        told = zero.configuration(recipe, ranks, shape.micro_batch, shape.accumulation, bf16, elements_learned, gpu)
        frozen = {name: count for name, count in elements.items() if name not in learns}
        learning_shapes = {name: shapes[name] for name in trained}
        groups = tuple(
            tuple(elements[name] for name in group) for group in grouped(learning_shapes, rate_scales(recipe))
        )
        return cls(recipe, vocab_size, ranks, shape, bf16, gpu, trained, frozen, groups, tuple(shapes), told)

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return self.recipe.engine.stage(self.ranks, self.bf16)

    @property
    def width(self) -> int:
        """Bytes of a number in the forward pass."""
        return 2 if self.bf16 else FP32

    @property
    def bucket(self) -> int:
        """Elements of a bucket of gradients, as DeepSpeed is told."""
        return self.told["zero_optimization"]["reduce_bucket_size"]

    @property
    def accumulated_in(self) -> int:
        """Bytes of a gradient that adds up over micro-batches."""
        return FP32 if "data_types" in self.told else self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.trained.values()) + sum(self.frozen.values())

    @property
    def tokens(self) -> int:
        """Of one forward pass on a rank."""
        return self.shape.micro_batch * self.recipe.model.context

    def partition(self) -> int:
        """Elements that a rank updates, padding included."""
        return sum(zero.partition(self.stage, group, self.ranks) for group in self.groups)

    def owned(self, rank: int = 0) -> int:
        """Elements that `rank` saves."""
        return sum(zero.owned(self.stage, group, self.ranks, rank) for group in self.groups)


@dataclass(frozen=True)
class Moment:
    """What a rank holds at one moment, in bytes by category."""

    name: str
    held: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.held.values())


def at_rest(setup: Setup) -> dict[str, int]:
    """Bytes that a rank holds between updates, by category: exactly DeepSpeed's tensors, with their padding."""
    stage, width, partition = setup.stage, setup.width, setup.partition()
    frozen = sum(-(-count // setup.ranks) if stage == 3 else count for count in setup.frozen.values())
    flat = sum(zero.flat(stage, group, setup.ranks) for group in setup.groups)
    held = {
        "weights": width * (flat + frozen) + buffers(setup.recipe.model, width),
        "masters": FP32 * partition if stage else 0,
        "moments": 2 * FP32 * partition,
        "gradients": 0,
        "buckets": 0,
        "exact": _exact_bytes(setup),
    }
    if stage == 3:
        held["gradients"] = setup.accumulated_in * partition
        held["buckets"] = width * (setup.bucket if setup.gpu else _fullest(setup))
        if setup.ranks > 1:
            limit = setup.told["zero_optimization"]["stage3_param_persistence_threshold"]
            fetched_once = (setup.trained | setup.frozen).values()  # and kept, the small ones
            held["gathered"] = width * sum(count for count in fetched_once if count <= limit)
    elif stage == 1 and setup.bf16 and setup.accumulated_in == FP32:  # DeepSpeed then takes another optimizer
        held["gradients"] = FP32 * flat
    return {name: count for name, count in held.items() if count}


def host_buffer(setup: Setup, rank: int = 0) -> int:
    """Bytes of host memory in which `rank` keeps what the saver is writing."""
    return FP32 * sizes.SAVED_FLOATS * setup.owned(rank)


def checkpoint_bytes(setup: Setup) -> int:
    """Bytes of one checkpoint's spans, over all ranks; heads and the manifest come on top."""
    return FP32 * sizes.SAVED_FLOATS * sum(setup.trained.values())


def moments(setup: Setup) -> list[Moment]:
    """The moments of one update at which a rank may hold most, in their order."""
    rest = at_rest(setup)
    found = []
    for name, extra in _update(setup):
        held = {key: rest.get(key, 0) + extra.get(key, 0) for key in CATEGORIES}
        found.append(Moment(name, {key: count for key, count in held.items() if count}))
    return [Moment("between updates", rest), *found]


def peak(setup: Setup) -> Moment:
    """The worst moment of an update."""
    return max(moments(setup), key=lambda moment: moment.total)


def _update(setup: Setup) -> Iterator[tuple[str, dict[str, int]]]:
    """What comes on top of the state at rest, moment by moment."""
    model, width, tokens = setup.recipe.model, setup.width, setup.tokens
    hidden, table = model.hidden_size, setup.vocab_size * model.hidden_size
    embedding = TABLES[model.family]
    stretches = [(block, list(names)) for block, names in groupby(setup.names, block_of)]
    head = embedding if model.tie_word_embeddings else stretches[-1][1][-1]
    head_learns = head in setup.trained
    kept = {block: _kept_block(setup, block) for block, _ in stretches if block}
    outside = around_blocks(model, tokens, width, setup.gpu) + 2 * INT64 * tokens
    gathered = _gathered(setup)
    carried = _carried(setup)

    rows = min(tokens, max(sizes.LEAST_CHUNK_ROWS, _chunk_logits(setup) // setup.vocab_size))
    chunk = rows * setup.vocab_size * (FP32 + (width if setup.bf16 else 0))
    to_hidden = 2 * tokens * hidden * width  # the hidden states and their gradient
    to_weight = FP32 * table if head_learns else 0
    weight_copy = width * table if head_learns else 0
    forward = {"activations": sum(kept.values()) + outside, "gathered": gathered, "gradients": carried}
    product = weight_copy if setup.bf16 else 0
    yield "end of the forward pass", forward | {"logits": chunk + to_hidden + to_weight + product}
    yield "backward of the loss", forward | {"logits": 2 * weight_copy + to_hidden}

    walk = _Gradients(setup)
    pending = weight_copy if head == embedding else 0
    if head_learns and head != embedding:
        yield from _named("backward of the output projection", forward, walk.take(head))
    state, number = forward | {"logits": pending}, len(kept)
    for block, names in reversed(stretches):
        learning = [name for name in reversed(names) if name in setup.trained and name not in (head, embedding)]
        if block is None:
            for name in learning:
                yield from _named("backward around the blocks", state, walk.take(name))
            continue
        number -= 1
        open_block = _block(setup, block) if setup.recipe.engine.activation_checkpointing else 0
        inner = 2 * tokens * model.mlp_size * width + 2 * tokens * hidden * width
        state = {"activations": sum(kept.values()) + open_block + inner, "logits": pending, "gathered": gathered}
        largest = width * max((setup.trained[name] for name in learning), default=0)
        yield f"backward of block {number}", _sum(state, walk.held(), {"gradients": largest})
        del kept[block]
        state = {"activations": sum(kept.values()), "logits": pending, "gathered": gathered}
        for name in learning:
            yield from _named(f"backward of block {number}", state, walk.take(name))
    if embedding in setup.trained:
        dense = {"logits": pending, "gradients": width * table, "gathered": gathered}
        yield "backward of the embedding", _sum(dense, walk.held())
        yield from _named("backward of the embedding", {"gathered": gathered}, walk.take(embedding))
    yield from _named("reducing gradients", {"gathered": gathered}, walk.reduce())
    yield from (("the optimizer", extra) for extra in walk.update())


def _named(name: str, state: dict[str, int], extras: list[dict[str, int]]) -> Iterator[tuple[str, dict[str, int]]]:
    for extra in extras:
        yield name, _sum(state, extra)


class _Gradients:
    """Where gradients lie while the backward pass makes them, as DeepSpeed's hooks move them."""

    def __init__(self, setup: Setup):
        self.s = setup
        self.whole = 0  # elements in tensors of their own
        self.filled = self.most = 0  # elements in the bucket now, and at most since it was made
        self.open = False
        self.mine = 0  # bytes copied out of the bucket for this rank
        self.earlier = _carried(setup) if setup.stage == 2 else 0  # of the update's micro-batches before
        self.waiting: list[int] = []
        self.hooked = setup.recipe.engine.exact != "any" and setup.stage > 1

    def held(self) -> dict[str, int]:
        """Bytes by category now."""
        bucket = 0
        if self.open and self.s.stage in (1, 2):
            elements = 2 * self.s.bucket if self.s.gpu else self.most
            bucket = self.s.width * elements
        return {"gradients": self.s.width * self.whole + self.mine + self.earlier, "buckets": bucket}

    def take(self, name: str) -> list[dict[str, int]]:
        """A parameter's gradient is there; the states that follow, one or more."""
        count = self.s.trained.get(name, 0)
        if not count:
            return [self.held()]
        self.open = self.open or (self.s.stage in (1, 2) and self.s.recipe.engine.exact != "any")
        self.waiting.append(count)
        self.whole += count
        return self._bucketed(count) if self.hooked else [self.held()]

    def _bucketed(self, count: int) -> list[dict[str, int]]:
        states = [self.held()]
        if self.filled and self.filled + count > self.s.bucket:
            states += self._flush()
        self.whole -= count
        if count > self.s.bucket:  # reduced where it lies
            self.whole += count
            states.append(_sum(self.held(), {"buckets": self.s.width * count}))
            self.whole -= count
            self._keep()
            return states
        self.filled += count
        self.most = max(self.most, self.filled)
        return [*states, self.held()]

    def _flush(self) -> list[dict[str, int]]:
        copies = 2 if self.s.stage == 3 and not self.s.gpu else 1  # gloo scatters from a copy of the copy
        state = _sum(self.held(), {"buckets": copies * self.s.width * self.filled})
        self.filled = 0
        self._keep()
        return [state, self.held()]

    def _keep(self) -> None:
        """What this rank owns leaves the bucket for a tensor of its own, made whole at the first time."""
        if self.s.stage in (1, 2):
            self.mine = self.s.accumulated_in * self.s.partition()

    def reduce(self) -> list[dict[str, int]]:
        """The end of the backward pass."""
        if self.s.recipe.engine.exact == "any":
            return [self.held()]
        if self.s.stage == 0:
            return [_sum(self.held(), {"buckets": self.s.width * self.whole})]
        states: list[dict[str, int]] = []
        if not self.hooked:
            for count in self.waiting:
                states += self._bucketed(count)
        return [*states, *self._flush()]

    def update(self) -> list[dict[str, int]]:
        """The norm, and the optimizer group by group."""
        groups = [zero.partition(self.s.stage, group, self.s.ranks) for group in self.s.groups]
        own = sum(groups)
        if self.s.stage == 0:
            return [{"gradients": self.s.width * own}]
        if self.s.recipe.engine.exact == "any":
            plain = 0 if self.s.gpu else 2 * FP32 * max(groups)  # AdamW that isn't fused
            return [{"optimizer": FP32 * own + plain}]
        if self.s.stage == 3:
            return [{"optimizer": FP32 * max(groups)}]
        found, left = [], self.s.accumulated_in * own
        norm = 2 * FP32 * max(max(group) for group in self.s.groups)
        found.append({"gradients": left, "optimizer": min(norm, 2 * FP32 * own)})
        for count in groups:
            found.append({"gradients": left, "optimizer": FP32 * count})
            left -= self.s.accumulated_in * count
        return found


def _sum(*parts: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            found[name] = found.get(name, 0) + count
    return found


def _block(setup: Setup, block: str) -> int:
    """Bytes that a block keeps where nothing is computed again."""
    decoder = setup.recipe.model.is_encoder_decoder and "decoder." in block
    return block_activations(setup.recipe.model, decoder, setup.tokens, setup.width, setup.gpu)


def _kept_block(setup: Setup, block: str) -> int:
    """Bytes that a block keeps until its backward pass."""
    if setup.recipe.engine.activation_checkpointing:
        return setup.tokens * setup.recipe.model.hidden_size * setup.width
    return _block(setup, block)


def _chunk_logits(setup: Setup) -> int:
    return sizes.CHUNK_LOGITS["cuda" if setup.gpu else "cpu"]


def _gathered(setup: Setup) -> int:
    if setup.stage < 3 or setup.ranks == 1:
        return 0
    limit = setup.told["zero_optimization"]["stage3_max_live_parameters"]
    persistent = setup.told["zero_optimization"]["stage3_param_persistence_threshold"]
    fetched = sum(count for count in (setup.trained | setup.frozen).values() if count > persistent)
    return setup.width * min(fetched, limit)


def _carried(setup: Setup) -> int:
    """Gradients of earlier micro-batches that lie there during the forward pass."""
    if setup.shape.accumulation == 1 or setup.recipe.engine.exact == "any" or setup.stage == 3:
        return 0
    if setup.stage == 2:
        return setup.accumulated_in * setup.partition()
    return setup.width * sum(setup.trained.values()) if setup.accumulated_in == setup.width else 0


def _fullest(setup: Setup) -> int:
    """Elements of a bucket that are ever written to."""
    filled = most = 0
    for count in reversed(setup.trained.values()):
        filled = count if filled + count > setup.bucket else filled + count
        most = max(most, filled if count <= setup.bucket else 0)
    return most


def _exact_bytes(setup: Setup) -> int:
    """`ExactGradient.held_bytes` without its layout: float64 sums, and what is sent and received in one exchange."""
    if setup.recipe.engine.exact != "any":
        return 0
    chunk, ranks = sizes.EXACT_CHUNK, setup.ranks
    most = max(1, -(-setup.partition() // chunk))
    rounds = -(-most // max(1, sizes.EXACT_BUCKET // (chunk * ranks)))
    bucket = -(-most // rounds) * chunk
    return 8 * rounds * bucket + ranks * bucket * setup.width * (2 if ranks > 1 else 1)
