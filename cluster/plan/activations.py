"""What a forward pass keeps for the backward pass, family by family. Pure arithmetic.

Counted by `torch.autograd.graph.saved_tensors_hooks` on torch 2.13's CPU kernels, block by block
(`tests/cluster/test_plan_activations.py` counts again); a GPU's fused kernels keep somewhat less.
"""

from trainer.recipe_model import Model

FP32 = 4
FEED_FORWARD = {"llama": 4, "gpt2": 2, "bert": 2, "t5": 4, "transformer": 1}
"""Tensors of the inner width that a feed-forward layer keeps: a gated one both branches, the gate and the product,
another what goes into GELU and what comes out; ReLU only what comes out."""


def block_activations(model: Model, decoder: bool, tokens: int, width: int, gpu: bool) -> int:
    """Bytes that one block keeps for its backward pass.

    Args:
        decoder: whether it is a block of an encoder-decoder's decoder, which has attention to the encoder's output.
        tokens: of one forward pass, of rows as long as the context.
        width: bytes of a number in the forward pass.
        gpu: with its kernels.
    """
    hidden, sublayers = model.hidden_size, 3 if decoder else 2
    kept = sublayers * norm(model, width) + attention(model, width, gpu, biased=model.family == "t5")
    if decoder:
        kept += attention(model, width, gpu, biased=False)
    kept += FEED_FORWARD[model.family] * width * model.mlp_size
    if model.residual_dropout:
        dropped = sublayers * hidden + (model.mlp_size if model.family == "t5" else 0)
        kept += dropped * (1 if gpu else width)
    return tokens * kept


def norm(model: Model, width: int) -> int:
    """Bytes a token: RMSNorm keeps its fp32 input, normalised value and scale, LayerNorm its input, mean and scale;
    both their output, for the projection after them."""
    hidden = model.hidden_size
    if model.family in ("llama", "t5"):
        return 2 * FP32 * hidden + FP32 + width * hidden
    return width * (2 * hidden + 2)


def attention(model: Model, width: int, gpu: bool, biased: bool) -> int:
    """Bytes a token: queries, keys, values, output and log-sum; documents apart cost their outputs' joint copy.

    On a CPU dropout, or a bias that learns, takes another kernel: it keeps fp32 copies of all heads and the
    probabilities, with dropout also its mask and what it leaves.
    """
    queries, narrow = model.num_attention_heads * model.head_size, model.key_value_heads * model.head_size
    if not gpu and (model.attention_dropout or biased):
        tables = 3 if model.attention_dropout else 1
        kept = width * queries + FP32 * (3 * queries + tables * model.num_attention_heads * model.context)
    else:
        kept = width * (2 * queries + 2 * narrow) + FP32 * model.num_attention_heads
    if model.is_decoder and model.attention == "document" and not (gpu and width < FP32):
        kept += width * queries
    return kept


def around_blocks(model: Model, tokens: int, width: int, gpu: bool) -> int:
    """Bytes that lie around the blocks: the last norm's of each stack, T5's table of biases, a row at most, and prefix
    attention's mask."""
    kept = norm(model, width) - width * model.hidden_size if model.is_decoder or model.family == "t5" else 0
    if model.family == "t5":
        kept += width * model.num_attention_heads * model.context
    if model.is_decoder and model.attention == "prefix":
        kept += width * model.context
    if model.residual_dropout and model.family != "llama":
        kept += model.hidden_size * (1 if gpu else width)
    return tokens * kept * (2 if model.is_encoder_decoder else 1)


def buffers(model: Model, width: int) -> int:
    """Bytes of what a model holds beside its parameters: cosine and sine, sinusoids, or buckets of distances."""
    if model.family == "llama":
        return width * model.context * model.head_size
    if model.family == "transformer":
        return 2 * width * model.context * model.hidden_size
    return 2 * 8 * (2 * model.context - 1) if model.family == "t5" else 0
