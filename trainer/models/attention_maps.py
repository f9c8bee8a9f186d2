"""Attention probabilities, which scaled_dot_product_attention doesn't give: computed beside it while a model runs.

A torch function mode sees each attention call with its queries, keys, mask and scale, whatever family made it. So the
models carry no code for it: without the mode they run exactly as before. The probabilities are those of transformers'
eager attention to 1e-5 (`tests/trainer/test_explain_hf.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def attention_maps(model: Any, run: Callable[[], object]) -> dict[str, Tensor]:
    """What each token of one row looks at while `run` calls `model` once, without a cache.

    Returns:
        (layers, heads, looking tokens, tokens looked at) fp32 each; "self" of a decoder or an encoder; "encoder",
        "decoder" and "cross" (from the decoder to what the encoder read) of an encoder-decoder.
    """
    with torch.no_grad(), _Watch() as watch:
        run()
    calls = watch.calls
    if not model.config.is_encoder_decoder:
        return {"self": torch.stack(calls)}
    encoder = model.config.num_hidden_layers
    # An encoder-decoder's decoder layer looks at itself, then at the memory.
    parts = {"encoder": calls[:encoder], "decoder": calls[encoder::2], "cross": calls[encoder + 1 :: 2]}
    return {name: torch.stack(part) for name, part in parts.items()}


class _Watch(TorchFunctionMode):
    """Keeps the probabilities of the first row at every attention call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []
        """(heads, queries, keys) fp32, in the order of the calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append(probabilities(*args, **kwargs)[0].cpu())
        return func(*args, **kwargs)


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale * query key^T + mask) in fp32, (..., heads, queries, keys): torch's own parameters and defaults.

    Neither `value` nor dropout has a part in it.
    """
    query, key = query.float(), key.float()
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    scores = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.float()
    return scores.softmax(-1)
