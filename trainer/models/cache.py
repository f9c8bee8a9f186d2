"""What a decoder remembers of the tokens it has seen, for generation: keys and values, by layer and row.

Rows of different lengths share a batch: prompts are padded on the right, where causal attention lets no real token see
the padding; a row's next token is then written over its padding, and a row attends only to its own first `lengths`
places. So no row's text depends on how long its neighbours are, and a row's positions begin at 0 as they did in
training (padding on the left, as transformers pads, needs a mask over every prompt and positions shifted by row).

Keys and values of a layer are one tensor, so that reordering beams is one copy. Beams of a prompt hold its keys alike,
so only what came after it is moved: of four beams each of eight prompts of 64 to 256 tokens, 0.8 % of the time of 24
tokens, where moving all of a row's places took 8 %.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GROWTH = 128  # places added at once, so that a long limit costs memory only as it is used


class Cache:
    """Keys and values of the tokens seen so far by each row."""

    def __init__(self, lengths: Sequence[int], capacity: int, device: torch.device) -> None:
        """For prompts of `lengths` tokens, to grow to at most `capacity` tokens a row."""
        self.lengths = torch.tensor(lengths, device=device)
        """(rows,) int64: tokens each row holds, which is also the position of its next one."""
        self.width = max(lengths)
        """Tokens of the longest row, known to the host."""
        self.capacity = capacity
        self.filled = False
        """Whether the prompts are in."""
        self._layers: dict[int, Tensor] = {}
        self._crossed: dict[int, tuple[Tensor, Tensor]] = {}
        self._held = list(lengths)
        self._shared = 0  # places that rows of a prompt hold alike
        self._steps = 0  # tokens of each row after its prompt
        self._mask: Tensor | None = None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores `key` and `value` (rows, tokens, heads, head size); gives back all that the new tokens attend to.

        The third is a mask (rows, 1, 1, places), True where a row may look; None for the prompts (causal), and where
        each row may look at all that is given back.
        """
        if not self.filled:
            room = min(self.capacity, self.width + GROWTH)
            # Zeros, not empty: a place nobody attends to still takes part, times 0, and 0 x NaN is NaN.
            self._layers[layer] = stored = key.new_zeros((2, key.size(0), room, *key.shape[2:]))
            stored[0, :, : self.width], stored[1, :, : self.width] = key, value
            return key, value, None
        stored = self._room(layer)
        if self._mask is None:
            stored[0, :, self.width], stored[1, :, self.width] = key[:, 0], value[:, 0]
        else:
            rows = torch.arange(len(self._held), device=key.device)
            stored[0, rows, self.lengths], stored[1, rows, self.lengths] = key[:, 0], value[:, 0]
        seen = stored[:, :, : self.width + 1]
        return seen[0], seen[1], self._mask

    def cross(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, source tokens, heads, head size) of what an encoder read: made once, by `make`."""
        if layer not in self._crossed:
            self._crossed[layer] = make()
        return self._crossed[layer]

    def advance(self) -> None:
        """After a forward pass: the prompts are in, or each row is one token longer.

        A row that is full stays so: what is still fed to it, beside rows that go on, is written over its last place.
        """
        if self.filled:
            self.lengths = (self.lengths + 1).clamp(max=self.capacity - 1)
            self._held = [min(length + 1, self.capacity - 1) for length in self._held]
            self._steps += 1
        self.filled = True
        self._look()

    def repeat(self, times: int) -> None:
        """Makes `times` rows of each row, next to each other: several continuations of one prompt."""
        self._shared = min(self._held)
        if times == 1:
            return
        self.lengths = self.lengths.repeat_interleave(times)
        self._held = [length for length in self._held for _ in range(times)]
        self._layers = {layer: stored.repeat_interleave(times, 1) for layer, stored in self._layers.items()}
        self._crossed = {
            layer: (key.repeat_interleave(times, 0), value.repeat_interleave(times, 0))
            for layer, (key, value) in self._crossed.items()
        }
        self._look()

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` (int64, on the device) was, which continues the same prompt: what came after
        the prompts is moved."""
        if self._mask is None:
            new = slice(self._shared, self.width)
            for stored in self._layers.values():
                stored[:, :, new] = stored[:, rows, new]
            return
        own = torch.arange(len(self._held), device=rows.device)[:, None]
        steps = torch.arange(self._steps, device=rows.device)
        places = (self.lengths[:, None] - self._steps + steps).clamp(min=0)
        for stored in self._layers.values():
            stored[:, own, places] = stored[:, rows[:, None], places]

    def select(self, rows: Sequence[int]) -> None:
        """Keeps only `rows`, in this order; any may come twice."""
        chosen = torch.tensor(rows, device=self.lengths.device)
        self.lengths = self.lengths[chosen]
        self._held = [self._held[row] for row in rows]
        self._layers = {layer: stored[:, chosen] for layer, stored in self._layers.items()}
        self._crossed = {layer: (key[chosen], value[chosen]) for layer, (key, value) in self._crossed.items()}
        self._look()

    def _room(self, layer: int) -> Tensor:
        """The layer's tensor, with room for one more token in every row."""
        stored = self._layers[layer]
        if self.width == stored.size(2):
            more = min(self.capacity, 2 * self.width) - self.width
            added = stored.new_zeros((*stored.shape[:2], more, *stored.shape[3:]))
            self._layers[layer] = stored = torch.cat((stored, added), 2)
        return stored

    def _look(self) -> None:
        """Where each row will look in the next pass."""
        self.width = max(self._held)
        if min(self._held) == self.width:
            self._mask = None
        else:
            places = torch.arange(self.width + 1, device=self.lengths.device)
            self._mask = (places <= self.lengths[:, None])[:, None, None]
