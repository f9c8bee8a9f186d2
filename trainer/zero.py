"""What DeepSpeed is told, and how its ZeRO cuts parameters into partitions. Pure: the engine and the plan share it.

An unknown top-level key of DeepSpeed's configuration is ignored silently; `configuration` is the only place that
writes one. Sizes that its defaults would decide are stated, so that the plan can read them here.
"""

import math
from collections.abc import Sequence
from typing import Any

from trainer import sizes
from trainer.recipe import Recipe

ALIGNED = 2  # elements: the flat tensors of ZeRO 1 and 2 are padded to this times the ranks


def configuration(
    recipe: Recipe, ranks: int, micro_batch: int, accumulation: int, bf16: bool, trainable: int, gpu: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        micro_batch: rows of one forward on a rank.
        accumulation: forwards of a rank in one update.
        bf16: compute in bf16 with fp32 master weights.
        trainable: elements that train, over all ranks.
        gpu: communication may overlap with computing.
    """
    stage = recipe.engine.stage(ranks, bf16)
    bucket = min(sizes.GRADIENT_BUCKET, max(trainable, 1))
    ours = recipe.engine.exact == "any"  # what DeepSpeed would do with gradients is done already
    accumulation = 1 if ours else accumulation
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,  # it refuses odd ones, such as a head of three classes makes
        "overlap_comm": gpu,
    }
    if stage == 3:
        zero |= {
            "stage3_max_live_parameters": sizes.LIVE_PARAMETERS,
            "stage3_max_reuse_distance": sizes.LIVE_PARAMETERS,
            "stage3_prefetch_bucket_size": sizes.PREFETCH,
            "stage3_param_persistence_threshold": sizes.PERSISTENT,
            "sub_group_size": sizes.SUB_GROUP,
        }
    if ours and stage < 3:
        zero["compute_grad_norm"] = False
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * ranks,
        "gradient_clipping": 0.0 if ours or stage == 0 else recipe.optimizer.clip or 0.0,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if bf16:
        found["bf16"] = {"enabled": True, "check_grad_overflow": not ours}
        if accumulation > 1:
            found["data_types"] = {"grad_accum_dtype": "fp32"}
    return found


def partition(stage: int, group: Sequence[int], ranks: int) -> int:
    """Elements of one optimizer group that each rank owns, padding included; at stage 0 all of them.

    ZeRO 1 and 2 lay a group out flat and cut that into equal parts; ZeRO 3 cuts every parameter by itself.

    Args:
        group: elements of each of its parameters.
    """
    if stage == 3:
        return sum(-(-size // ranks) for size in group)
    if stage == 0:
        return sum(group)
    return math.ceil(sum(group) / (ALIGNED * ranks)) * ALIGNED


def flat(stage: int, group: Sequence[int], ranks: int) -> int:
    """Elements of the tensor that a rank computes with, of one group: whole and padded, or at stage 3 its partition."""
    return partition(stage, group, ranks) * (ranks if stage in (1, 2) else 1)


def owned(stage: int, group: Sequence[int], ranks: int, rank: int) -> int:
    """Elements of one group that `rank` saves, without padding; at stage 0 its share of each parameter."""
    if stage in (1, 2):
        part = partition(stage, group, ranks)
        return min(part, max(0, sum(group) - rank * part))
    return sum(min(-(-size // ranks), max(0, size - rank * -(-size // ranks))) for size in group)
