"""What the plan says that a block keeps for its backward pass, against what autograd is seen to save."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.plan.activations import block_activations, buffers
from tests.trainer.families import padded, real
from trainer.models import bert, decoder, gpt2, t5, transformer
from trainer.models.build import build
from trainer.models.layers import Documents, prefix_mask
from trainer.models.padding import WORTH, unpad
from trainer.models.presets import PRESETS
from trainer.models.rotary import rotary_table
from trainer.recipe_model import Model

ROWS, CONTEXT, HIDDEN = 2, 32, 64
SIZES = {"context": CONTEXT, "hidden_size": HIDDEN, "num_attention_heads": 4, "intermediate_size": 160}
DROPOUTS = ({}, {"residual_dropout": 0.1}, {"attention_dropout": 0.1})


def block_and_inputs(model: Model, decoding: bool, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """A block of the family, and what its stack hands to it."""
    x, memory = (torch.randn(ROWS, CONTEXT, HIDDEN, dtype=dtype, requires_grad=True) for _ in range(2))
    apart = Documents.of([np.array([0, 16])] * ROWS, CONTEXT) if model.attention == "document" else None
    mask = prefix_mask(x, model.attention, torch.full((ROWS,), 9), None) if model.attention == "prefix" else None
    match model.family:
        case "llama":
            table = rotary_table(CONTEXT, model.head_size, 1e4, model.rope_scaling)
            return decoder.Block(model), [
                x,
                tuple(part[None, :, None].to(dtype) for part in table),
                apart,
                None,
                0,
                mask,
            ]
        case "gpt2":
            return gpt2.Block(model), [x, apart, None, 0, mask]
        case "bert":
            return bert.Layer(model), [x, None]
        case "t5":
            bias = torch.randn(1, 4, CONTEXT, CONTEXT, dtype=dtype, requires_grad=True)
            return t5.Block(model, decoding, False), [x, None, bias, memory if decoding else None]
        case _:
            return transformer.Layer(model, decoding), [x, None, memory if decoding else None]


def saved_bytes(block: Any, inputs: list[Any]) -> int:
    """Bytes of the tensors that a forward pass saves, each storage once, without parameters and what others hold."""
    given = [part for each in inputs[1:] for part in (each if isinstance(each, tuple) else (each,))]
    outside = [*block.parameters(), *(each for each in given if isinstance(each, Tensor))]
    known = {each.untyped_storage().data_ptr() for each in outside}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = block(*inputs)
    del kept
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", DROPOUTS, ids=str)
@pytest.mark.parametrize(
    ("family", "decoding", "attention"),
    [
        ("llama", False, "full"), ("llama", False, "document"), ("llama", False, "prefix"), ("gpt2", False, "full"),
        ("gpt2", False, "document"), ("gpt2", False, "prefix"), ("bert", False, None), ("t5", False, None),
        ("t5", True, None), ("transformer", False, None), ("transformer", True, None),
    ],
)  # fmt: skip
def test_a_block_keeps_what_the_plan_says(family, decoding, attention, dropout, dtype):
    given = {"attention": attention} if attention else {}
    model = Model.model_validate({"family": family} | SIZES | given | dropout)
    block, inputs = block_and_inputs(model, decoding, dtype)
    saved = saved_bytes(block.to(dtype), inputs)
    said = block_activations(model, decoding, ROWS * CONTEXT, dtype.itemsize, gpu=False)
    if attention == "document" and model.attention_dropout:  # probabilities of documents shorter than the row
        assert saved < said
    else:
        assert said == saved


@pytest.mark.parametrize("dropout", DROPOUTS, ids=str)
@pytest.mark.parametrize(
    ("family", "decoding"),
    [("bert", False), ("t5", False), ("t5", True), ("transformer", False), ("transformer", True)],
)
def test_a_block_without_padding_keeps_no_more_than_the_plan_says(family, decoding, dropout):
    model = Model.model_validate({"family": family} | SIZES | dropout)
    block, (x, _, *others) = block_and_inputs(model, decoding, torch.float32)
    padding = padded(real([CONTEXT, int((2 * WORTH - 1) * CONTEXT)], CONTEXT))
    others = [unpad(each, padding) if each is not None and each.ndim == 3 else each for each in others]
    inputs = [unpad(x, padding), padding, *others, *([padding] if decoding else [])]
    assert padding.places is not None
    assert saved_bytes(block, inputs) <= block_activations(model, decoding, ROWS * CONTEXT, 4, gpu=False)


@pytest.mark.parametrize("family", PRESETS)
def test_what_a_model_holds_beside_its_parameters_is_in_the_plan(family):
    model = Model.model_validate({"family": family} | SIZES)
    assert sum(each.nbytes for each in build(model, 100).buffers()) == buffers(model, 4)
