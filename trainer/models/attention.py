"""Attention of encoders and encoder-decoders: over padded sentences, from one sequence to another, with dropout.

Everything goes through torch's scaled_dot_product_attention; what its masks hide: `padding.py`.
"""

import torch.nn.functional as F
from torch import Tensor


def multi_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of `q` (B, T, heads, head size) over `k` and `v` (B, S, heads, head size), to (B, T, features).

    Args:
        mask: broadcast to (B, heads, T, S); bool: True where a query may look; float: added to the scores.
        causal: a query sees the keys up to its own place; without a mask only.
        dropout: of the attention probabilities.
        scale: of the scores; None: head size ** -0.5 (arXiv:1706.03762, section 3.2.1).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal, scale=scale)
    return out.transpose(1, 2).flatten(-2)
