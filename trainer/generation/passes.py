"""A batch of prompts going through a model: all of it once, then a forward pass a token.

The one place that knows of model families: a decoder is fed the prompt, an encoder-decoder encodes it and its decoder
begins with a start token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.cache import Cache
from trainer.models.padding import Padding


def prefix(model: Any) -> list[int]:
    """Ids that the model wants before each input: a tuned prompt's virtual tokens."""
    return getattr(model, "prefix", [])


def writer(model: Any) -> Any:
    """Of two nets, the one that writes; else the model itself."""
    return getattr(model, "generator", model)


class Passes:
    """The forward passes of one batch, and the tokens that it holds."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], limits: Sequence[int], start_id: int | None):
        """For `limits` new tokens after each of `prompts`; `start_id` is an encoder-decoder's first decoder token."""
        self._model: Any = model
        self._device = next(tensor.device for held in (model.buffers(), model.parameters()) for tensor in held)
        self._prompts = [[*prefix(model), *prompt] for prompt in prompts]
        self._memory: Tensor | None = None
        self._padding: Padding | None = None
        held = prompts if start_id is None else [[start_id]] * len(prompts)
        self.begun = max(map(len, held))
        """Columns of `history` before the first new token."""
        lengths = [len(each) for each in (self._prompts if start_id is None else held)]
        room = min(self._model.config.context, max(lengths) + max(limits))
        self._cache = Cache(lengths, room, self._device)
        empty = self._model.vocab_size
        self._history = torch.full((len(prompts), self.begun + max(limits)), empty, device=self._device)
        for row, each in enumerate(held):
            self._history[row, self.begun - len(each) : self.begun] = torch.tensor(each, device=self._device)
        self._filled = self.begun

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def history(self) -> Tensor:
        """(rows, tokens) int64: what each row holds, aligned at its end; in front of shorter rows the vocabulary's
        size."""
        return self._history[:, : self._filled]

    def begin(self) -> Tensor:
        """Reads the prompts: (rows, vocabulary) fp32 logits of each one's next token."""
        if self._model.config.is_encoder_decoder:
            source, lengths = self._rows()
            self._padding = Padding.of(np.arange(source.size(1)) < lengths[:, None], self._device)
            self._memory = self._model.encode(source, self._padding)
            return self._scores(self.history)
        return self._scores(self._rows()[0])

    def advance(self, tokens: Tensor) -> Tensor:
        """Feeds each row its next token (rows,) int64: (rows, vocabulary) fp32 logits of the one after it."""
        self.take(tokens)
        return self._scores(tokens[:, None])

    def take(self, tokens: Tensor) -> None:
        """Puts each row's next token (rows,) into `history` alone: no pass follows."""
        self._history[:, self._filled] = tokens
        self._filled += 1

    def repeat(self, times: int) -> None:
        """`times` rows of each, next to each other."""
        self._cache.repeat(times)
        if times > 1:
            self._history = self._history.repeat_interleave(times, 0)
            if self._padding is not None:
                rows = torch.arange(len(self._padding.real), device=self._device)
                self._padding = self._padding.take(rows.repeat_interleave(times))

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on from row `rows[i]`, which continues the same prompt."""
        self._cache.reorder(rows)
        self._history = self._history[rows]

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with `rows` only."""
        self._cache.select(rows)
        chosen = torch.tensor(rows, device=self._device)
        self._history = self._history[chosen]
        if self._padding is not None:
            self._padding = self._padding.take(chosen)

    def _rows(self) -> tuple[Tensor, np.ndarray]:
        """The prompts (rows, longest) int64, padded on the right, and their lengths."""
        lengths = np.array([len(row) for row in self._prompts])
        padded = torch.tensor([[*row, *[0] * (int(lengths.max()) - len(row))] for row in self._prompts])
        return padded.to(self._device), lengths

    def _scores(self, tokens: Tensor) -> Tensor:
        if self._memory is not None:
            # After the first pass the memory is in the cache, row by row, and isn't looked at any more.
            logits = self._model.decode(tokens, self._memory, self._padding, cache=self._cache)
        else:
            logits = self._model(tokens, cache=self._cache)
        return logits[:, -1].float()
