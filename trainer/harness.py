"""A decoder of ours as lm-eval knows models: its three questions, answered by our likelihoods and our generation.

Texts are read plain, and after an EOS where there is no context, as our documents are. lm-eval's own HFLM gives the
same figures for an exported model if it is told that (`prefix_token_id`; by itself it takes <|bos|>, which training
never met): `tests/trainer/test_lm_eval_hf.py`. Imported only where lm-eval is there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data.errors import UserError
from trainer.generate import generate
from trainer.generation.settings import Decoding, early_stopping_of
from trainer.likelihood import Passage, sums_of
from trainer.scores import Loaded

NEW_TOKENS = 256
"""Where a task doesn't say: lm-eval's own default."""
SETTINGS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams",
    "length_penalty",
)  # fmt: skip
"""Of a task's generation_kwargs, those that are ours under the same name."""


class Harnessed(TemplateLM):
    """A loaded decoder behind lm-eval's interface."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.loaded = loaded
        self.cut = 0
        """Inputs that lost their beginning, because they are longer than the model's context."""

    @property
    def eot_token_id(self) -> int:
        """What ends a document, and stands before a text without context."""
        return self.loaded.inputs.tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; nothing is ever added."""
        return self.loaded.inputs.tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability, and whether greedy decoding would have made it."""
        return self._read([(before, asked) for _, before, asked in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, longer ones by windows of the model's context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.eot_token_id, self._context, context_len=1)
            windows += map(make_disjoint_window, rolling)
            owners += [number] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._read(windows), strict=True):
            totals[owner] += found
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each text, up to the first of the texts that end it.

        Raises:
            UserError: a task asks for what our generation hasn't, or for more tokens than the context holds.
        """
        texts, by_settings = [""] * len(requests), {}
        for number, request in enumerate(requests):
            by_settings.setdefault(str(request.args[1]), []).append(number)
        for numbers in by_settings.values():
            decoding, stops = self._settings(requests[numbers[0]].args[1])
            room = self._context - decoding.max_new_tokens
            prompts = [self.tok_encode(requests[number].args[0]) or [self.eot_token_id] for number in numbers]
            self.cut += sum(len(prompt) > room for prompt in prompts)
            made = generate(
                self.loaded.model, [prompt[-room:] for prompt in prompts], decoding, eos_id=self.eot_token_id
            )
            for number, (tokens,) in zip(numbers, made, strict=True):
                text = self.loaded.inputs.tokenizer.decode(tokens)
                for stop in stops:
                    text = text.split(stop)[0]
                texts[number] = text
        return texts

    @property
    def _context(self) -> int:
        return self.loaded.recipe.model.context

    def _read(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Each second part's log-probability after its first, and whether all its tokens are the likeliest."""
        passages = []
        for before, asked in pairs:
            if len(asked) > self._context:
                raise UserError(f"an answer has {len(asked)} tokens, and the model's context holds {self._context}")
            whole = [*before, *asked]
            self.cut += len(whole) > self._context + 1
            kept = whole[-self._context - 1 :]
            passages.append(Passage(np.array(kept, np.int64), len(kept) - len(asked)))
        return [(-loss, correct == labels) for loss, labels, correct, _ in sums_of(self.loaded, passages).tolist()]

    def _settings(self, asked: dict[str, Any]) -> tuple[Decoding, list[str]]:
        """How to decode, and what ends a text."""
        told: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
        stops, tokens = [stop for stop in told.pop("until") if stop], told.pop("max_gen_toks")
        if told.pop("do_sample", False):
            told.setdefault("temperature", 1.0)  # transformers' own
        if tokens >= self._context:
            raise UserError(
                f"it asks for {tokens} new tokens, and the model's context holds {self._context}: lower "
                "generation_kwargs.max_gen_toks in its file"
            )
        settings = {name: told.pop(name) for name in SETTINGS if name in told}
        if "early_stopping" in told:
            settings["early_stopping"] = early_stopping_of(str(told.pop("early_stopping")).lower())
        if told:
            raise UserError(f"generation_kwargs.{next(iter(told))} is nothing that luban generate knows")
        return Decoding(tokens, **settings), stops
