"""The gradient of `engine.exact: any`: the same bits whatever the number of ranks and the ZeRO stage.

What differs between topologies is the order in which sums are made, so here every sum has one order:
- Over micro-batches. `data.order.deal.deal` gives micro-batch round x world + turn the same rows for any world. Each is
  differentiated by itself, and its pieces go, in the dtype they were computed in, to the rank whose ZeRO partition they
  belong to. That owner adds them into float64 in the order of the ranks' turns, round after round, which is
  micro-batch 0, 1, 2, ... on any world. A sum of n fp32 terms is exact in float64, and would need no order, while
  their exponents differ by no more than 29 - log2(n) binary places; gradients do differ by more, the sum then rounds,
  and the order keeps it the same. All it asks for is that micro-batches have a fixed size. One of fillers alone adds
  zeros, and since the sum starts at +0, a zero of either sign changes nothing.
- Over elements, for the norm. Squares are summed in chunks of 512 elements counted from the start of their parameter,
  by adding halves to halves, elementwise: torch's own `sum` may choose its order by shape, stride and device, an
  elementwise addition cannot. A chunk that two ranks share is put together first (x + 0 is exact). The chunks' sums
  are then known to all and added in the parameters' order.
- Over ranks, for the loss: see `addable`.
The scale (clipping, label tokens) is one float64 factor, rounded to fp32 once, and the result is handed to ZeRO's
update in place, in its own partition: nothing is redistributed, and no second backward is needed.

Cost, with P trainable parameters on W ranks: 8 P / W bytes a rank for the sums, one micro-batch's whole gradient
(4 P bytes, in bf16 2 P) while it is sent, two buckets of at most 16 MB, and P sent and received in each micro-batch,
where ZeRO 1 would reduce once an update. Against `topology`: see tests/bench/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.order.deal import turn
from trainer.sizes import EXACT_BUCKET as BUCKET
from trainer.sizes import EXACT_CHUNK as CHUNK
from trainer.world import World

BLOCK = 2**12
"""Chunks squared at once: 16 MB."""
LOSS_UNIT = 2.0**-20
"""Nats of which every loss is a whole number before it is added to others."""


def addable(loss: Tensor) -> Tensor:
    """`loss` in float64, as a multiple of 2^-20: such sums are exact in any order, below 8.6e9 nats.

    An fp32 loss of 8 nats or more is such a multiple by itself; a smaller sum of token losses changes by 5e-7 at most.
    """
    return torch.round(loss.detach().double() / LOSS_UNIT) * LOSS_UNIT


def folded(rows: Tensor) -> Tensor:
    """(N, a power of two) -> (N,): each row's sum, by halves, in an order that nothing but its width decides."""
    while rows.size(1) > 1:
        half = rows.size(1) // 2
        rows = rows[:, :half] + rows[:, half:]
    return rows[:, 0]


def total(terms: Tensor) -> Tensor:
    """(N,) -> scalar: as `folded`, padded with zeros."""
    width = 1 << max(len(terms) - 1, 0).bit_length()
    return folded(torch.nn.functional.pad(terms, (0, width - len(terms)))[None])[0]


def divide_graph(module: nn.Module) -> None:
    """Let what enters and leaves each submodule pass an autograd node of its own, as ZeRO 3 does to fetch weights.

    Where a tensor is used three times, twice of them inside one submodule (a norm of several operations), those two
    gradients are then summed first at every stage.
    """
    for part in module.modules():
        part.register_forward_pre_hook(lambda _, inputs: _passed(inputs))
        part.register_forward_hook(lambda _, inputs, output: _passed(output))


def _passed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.view_as(value) if value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(_passed(part) for part in value)
    return value


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one flattened parameter, owned by one rank."""

    parameter: int
    """Its number among those that train."""
    start: int
    count: int

    @property
    def lead(self) -> int:
        """Elements of its first chunk that lie before it."""
        return self.start % CHUNK

    @property
    def rows(self) -> int:
        """Chunks it touches."""
        return -(-(self.lead + self.count) // CHUNK)


class ExactGradient:
    """The gradient of one update, growing micro-batch by micro-batch, each rank holding its own pieces.

    A rank's sums are a (rows, 512) float64 matrix. A row is a chunk of one parameter, or the part of it that the rank
    owns between zeros.
    """

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, world: World):
        """Collective.

        Args:
            sizes: elements of each parameter.
            pieces: those of this rank. Over all ranks they hold each element once.
            dtype: of the gradients.
        """
        self._world, self._pieces = world, list(pieces)
        self._turns = sorted(range(world.size), key=lambda rank: turn(rank, world.size, world.groups))
        everyone: list[list[Piece]] = world.gather(self._pieces)
        most = max(1, max(sum(piece.rows for piece in held) for held in everyone))
        self._rounds = -(-most // max(1, BUCKET // (CHUNK * world.size)))
        self._bucket = -(-most // self._rounds) * CHUNK
        self._sums = torch.zeros(self._rounds * self._bucket, dtype=torch.float64, device=world.device)
        self._sent = torch.empty(world.size * self._bucket, dtype=dtype, device=world.device)
        self._received = torch.empty_like(self._sent) if world.size > 1 else self._sent
        self._plan = [self._segments(everyone, number) for number in range(self._rounds)]
        gaps = (stop for plan in self._plan for parameter, _, stop in plan if parameter is None)
        self._nothing = torch.zeros(max(gaps, default=0), dtype=dtype, device=world.device)
        self._map_chunks(sizes, everyone)
        self._squares: Tensor | None = None

    def _segments(self, everyone: list[list[Piece]], number: int) -> list[tuple[int | None, int, int]]:
        """What fills one exchange: for each owner its next `_bucket` elements, as (parameter or None, from, to)."""
        segments: list[tuple[int | None, int, int]] = []
        for pieces in everyone:
            begin, end, row = number * self._bucket, (number + 1) * self._bucket, 0
            at = begin
            for piece in pieces:
                first = row * CHUNK + piece.lead
                low, high = max(begin, first), min(end, first + piece.count)
                row += piece.rows
                if low >= high:
                    continue
                if low > at:
                    segments.append((None, 0, low - at))
                segments.append((piece.parameter, piece.start + low - first, piece.start + high - first))
                at = high
            if at < end:
                segments.append((None, 0, end - at))
        return segments

    def _map_chunks(self, sizes: Sequence[int], everyone: list[list[Piece]]) -> None:
        """Which row of this rank is which chunk of the model, and which chunks lie on several ranks ("torn")."""
        self._first = [0]  # each parameter's first chunk, and their number
        for size in sizes:
            self._first.append(self._first[-1] + -(-size // CHUNK))
        holders: dict[int, int] = {}  # of the chunks at the ends of pieces; inside them there is but one
        for pieces in everyone:
            for piece in pieces:
                chunks = self._chunks(piece)
                for chunk in {chunks[0], chunks[-1]}:
                    holders[chunk] = holders.get(chunk, 0) + 1
        torn = {chunk: slot for slot, chunk in enumerate(sorted(c for c, ranks in holders.items() if ranks > 1))}
        whole, parts = [], []
        for row, chunk in enumerate(chunk for piece in self._pieces for chunk in self._chunks(piece)):
            (parts if chunk in torn else whole).append((row, torn.get(chunk, chunk)))
        device = self._world.device
        self._whole_rows, self._whole_chunks = torch.tensor(whole, dtype=torch.long, device=device).view(-1, 2).T
        self._torn_rows, self._torn_slots = torch.tensor(parts, dtype=torch.long, device=device).view(-1, 2).T
        self._torn_chunks = torch.tensor(list(torn), dtype=torch.long, device=device)

    def _chunks(self, piece: Piece) -> range:
        first = self._first[piece.parameter] + piece.start // CHUNK
        return range(first, first + piece.rows)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one micro-batch's gradient, whole, by parameter; None is zero. Collective."""
        self._squares = None
        flat = [None if gradient is None else gradient.reshape(-1) for gradient in gradients]
        for number, plan in enumerate(self._plan):
            parts = []
            for parameter, start, stop in plan:
                source = self._nothing if parameter is None else flat[parameter]
                parts.append(self._sent.new_zeros(stop - start) if source is None else source[start:stop])
            torch.cat(parts, out=self._sent)
            if self._world.size > 1:
                dist.all_to_all_single(self._received, self._sent)
            sums = self._sums[number * self._bucket : (number + 1) * self._bucket]
            received = self._received.split(self._bucket)
            for rank in self._turns:
                sums += received[rank]

    def clear(self) -> None:
        """Begin the next update."""
        self._sums.zero_()
        self._squares = None

    def norm(self) -> float:
        """Of the whole gradient, the same bits on all ranks; not finite where the gradient isn't. Collective."""
        return float(total(self._chunk_squares()).sqrt())

    def norms(self) -> list[float]:
        """Of each parameter's gradient. Collective."""
        squares = self._chunk_squares()
        edges = zip(self._first[:-1], self._first[1:], strict=True)
        return [float(total(squares[first:last]).sqrt()) for first, last in edges]

    def _chunk_squares(self) -> Tensor:
        """(chunks of the model,) sums of squares, known to all ranks after one collective."""
        if self._squares is not None:
            return self._squares
        rows, chunks = self._sums.view(-1, CHUNK), self._first[-1]
        told = torch.zeros(chunks + len(self._torn_chunks) * CHUNK, dtype=torch.float64, device=self._world.device)
        squares, torn = told[:chunks], told[chunks:].view(-1, CHUNK)
        mine = torch.cat([folded(block.square()) for block in rows.split(BLOCK)])
        squares[self._whole_chunks] = mine[self._whole_rows]
        torn[self._torn_slots] = rows[self._torn_rows]
        if self._world.size > 1:
            dist.all_reduce(told)
            squares[self._torn_chunks] = folded(torn.square())
        self._squares = squares
        return squares

    def write(self, targets: Sequence[Tensor], scale: float) -> None:
        """Put this rank's pieces, times `scale`, into `targets` (1-D, one a piece), rounded once to their dtype."""
        row = 0
        for piece, target in zip(self._pieces, targets, strict=True):
            first = row * CHUNK + piece.lead
            torch.mul(self._sums[first : first + piece.count], scale, out=target)
            row += piece.rows

    def held_bytes(self) -> int:
        """Memory on this rank for as long as the engine lives."""
        held = (self._sums, self._sent, self._nothing, *([self._received] if self._world.size > 1 else []))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def sent_bytes(self) -> int:
        """What this rank sends to others in one micro-batch."""
        size = self._world.size
        return self._rounds * self._bucket * (size - 1) * self._sent.element_size()
