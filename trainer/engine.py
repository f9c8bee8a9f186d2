"""DeepSpeed ZeRO 0-3 behind a few calls: backward, step, spans, load. The only file that imports it.

What is decided here, each measured on gloo ranks (a 0.5 M parameter toy, 20 steps, against unsharded PyTorch):
- The optimizer handed over is torch's fused AdamW: DeepSpeed's own is compiled for 44 s at start-up and doesn't resume
  bitwise. The learning rate is ours and set before every update: DeepSpeed's schedules start at zero.
- DeepSpeed averages rank means. A loss is therefore scaled by world x accumulation / label tokens of the global
  batch before backward; unweighted, 16 against 128 labels gave a gradient norm of 3.6 instead of 2.1.
- Stage 0 has no check for non-finite gradients and reports no norm, so both are ours there, and clipping with them: it
  would measure the norm again. With bf16 it takes a phantom step at construction (0.73 of the first update) and is
  refused.
- DeepSpeed leaves the timeout of its data-parallel group at 30 minutes; every group gets ours.
- What it is told is written in `zero.py` alone.
- It can leave a step untaken without raising; its own counters are checked after each, and a step that they don't
  show was not taken.
- Under `exact: any` gradients are summed by `trainer.exact` and put where ZeRO's update looks for its own: DeepSpeed
  then neither reduces, nor measures, nor clips. On CPUs AdamW is not the fused one there, whose result depends on an
  element's place in the flat partition (260 of 520 slices differed; of the unfused one none): 6 ms more for 1.3 M
  parameters.
"""

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
warnings.filterwarnings("ignore", category=FutureWarning)

import deepspeed  # noqa: E402
from deepspeed.runtime.zero.linear import zero3_linear_wrap  # noqa: E402
from deepspeed.utils import logger, safe_get_full_grad  # noqa: E402

from data.errors import UserError  # noqa: E402
from trainer import watchdog  # noqa: E402
from trainer.checkpoint import MOMENTS, WEIGHT, Span, SpanReader  # noqa: E402
from trainer.exact import ExactGradient, Piece, divide_graph  # noqa: E402
from trainer.recipe import Recipe  # noqa: E402
from trainer.world import World  # noqa: E402
from trainer.zero import configuration  # noqa: E402

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
PIECE = 1 << 21  # elements read from a checkpoint at once: 25 MB with their moments, whatever the parameter's size


@dataclass(frozen=True)
class Verdict:
    """What became of one update, the same on every rank."""

    applied: bool
    reason: str | None
    grad_norm: Tensor | float
    """Norm of the whole gradient before clipping; a tensor not yet read, so that nothing waits for the device."""


@dataclass(frozen=True)
class _Place:
    """Where a rank keeps its piece of a parameter."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First of its elements in the flattened parameter."""
    count: int
    flat: int
    """Number of the flat tensor."""
    offset: int
    """First of its elements there."""


class _Averaged(list[Tensor]):
    """What ZeRO's update takes a group's gradient from: at stage 3 the list, at 1 and 2 the attribute."""

    def __init__(self, flat: Tensor):
        super().__init__([flat])
        self.flat_partition = flat


class Engine:
    """A model in training: its sharded state, one update at a time."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], recipe: Recipe, world: World, micro_batch: int,
                 accumulation: int, bf16: bool):  # fmt: skip
        """
        Args:
            model: whole on every rank, with its initial or restored weights.
            groups: of the trainable parameters, as `parameter_groups` makes them.
            micro_batch: rows of one forward pass on a rank.
            accumulation: forward passes of a rank in one update.
            bf16: compute in bf16 with fp32 master weights.

        Raises:
            UserError: stage 0 with bf16 or with exact any.
        """
        self.stage, self.world, self.accumulation = recipe.engine.stage(world.size, bf16), world, accumulation
        self.bf16 = bf16
        if self.stage == 0 and bf16:
            raise UserError("engine.zero_stage 0 takes a wrong first step in bf16: take stage 1, 2 or 3")
        any_topology = recipe.engine.exact == "any"
        if self.stage == 0 and any_topology:
            raise UserError("engine.exact any needs engine.zero_stage 1, 2 or 3")
        self._clip = recipe.optimizer.clip
        logger.setLevel("WARNING")
        # Its shared-memory transport is compiled for 25 s at the first meeting and serves inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        optimizer = OPTIMIZERS[recipe.optimizer.kind](
            groups, lr=recipe.optimizer.lr, betas=recipe.optimizer.betas, eps=recipe.optimizer.eps,
            fused=not (any_topology and world.device.type == "cpu"),
        )  # fmt: skip
        trainable = sum(parameter.numel() for group in groups for parameter in group["params"])
        cuda = world.device.type == "cuda"
        told = configuration(recipe, world.size, micro_batch, accumulation, bf16, trainable, cuda)
        self._engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=told)[0]
        if self.stage == 0 and world.size == 1:  # it would copy every gradient twice to average it with none
            self._engine.enable_backward_allreduce = False
        for group in list(dist.distributed_c10d._world.pg_map):
            patience = timedelta(seconds=recipe.engine.timeout_s + watchdog.HEAD_START_S)
            dist.distributed_c10d._set_pg_timeout(patience, group)
        self.module: Any = self._engine.module
        self._trainable = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        self._exact = self._exact_gradient() if any_topology else None
        self._label_tokens = 0

    def _exact_gradient(self) -> ExactGradient:
        """Sums that lie as ZeRO's partitions do; DeepSpeed is told that each update is one micro-batch, reduced."""
        numbers = {name: number for number, (name, _) in enumerate(self._trainable)}
        sizes = [getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in self._trainable]
        self._owned = list(self._places(whole=True))
        pieces = [Piece(numbers[place.name], place.start, place.count) for place in self._owned]
        self._engine.set_gradient_accumulation_boundary(True)
        if self.stage == 3:  # the setting that spares stages 1 and 2 DeepSpeed's own norm is refused there
            self._engine.optimizer._get_norm_groups = lambda: [torch.zeros(())]
        else:  # both are what ZeRO 3 does by itself; its linear layer may multiply in another order than torch's
            divide_graph(self.module)
            torch.nn.functional.linear = zero3_linear_wrap
        return ExactGradient(sizes, pieces, self._trainable[0][1].dtype, self.world)

    def backward(self, loss: Tensor, label_tokens: int, last: bool) -> None:
        """Accumulate the gradient of `loss`, a sum over this rank's labels.

        Args:
            label_tokens: labels of the whole global batch, over all ranks and micro-batches.
            last: this is the update's last micro-batch; the gradients are then reduced.
        """
        if self._exact is not None:
            self._label_tokens = label_tokens
            gradients = torch.autograd.grad(loss, [p for _, p in self._trainable], allow_unused=True)
            if self.stage == 3:
                self._engine.optimizer.backward_epilogue()  # lets go of what the backward pass has fetched
            self._exact.add(gradients)
            return
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * (self.world.size * self.accumulation / label_tokens))
        if not last:
            self._engine.step()

    @property
    def extra(self) -> tuple[int, int] | None:
        """What `exact: any` costs this rank: (bytes of memory, bytes sent in one update); None in the other modes."""
        if self._exact is None:
            return None
        return self._exact.held_bytes(), self._exact.sent_bytes() * self.accumulation

    @property
    def model(self) -> Any:
        """The model to train: its own forward, through DeepSpeed's hooks, or only those that fetch its weights."""
        return self._engine if self._exact is None else self.module

    def step(self, lr: float) -> Verdict:
        """Apply the accumulated gradient with learning rate `lr` (times a group's `scale`), or skip it if not finite.

        Raises:
            RuntimeError: DeepSpeed's counters don't show the step.
        """
        for group in self._base.param_groups:
            group["lr"] = lr * group["scale"]
        if self.stage == 0:
            return self._step_unsharded()
        if self._exact is not None:
            return self._step_exact(self._exact)
        if self._advance():
            return Verdict(True, None, self._engine.get_global_grad_norm())
        return Verdict(False, "non-finite gradient", float("nan"))

    def _advance(self) -> bool:
        """Have DeepSpeed take its step; returns whether it was applied, which its counters must bear out."""
        engine = self._engine
        steps, skipped = engine.global_steps, engine.skipped_steps
        engine.step()
        applied = engine.was_step_applied()
        if engine.global_steps != steps + 1 or engine.skipped_steps != skipped + (not applied):
            raise RuntimeError(
                f"DeepSpeed's step was {'applied' if applied else 'not applied'} by its own account, but its "
                f"global_steps went from {steps} to {engine.global_steps} and its skipped_steps from {skipped} to "
                f"{engine.skipped_steps}: what became of the update is unknown, start again from the last checkpoint"
            )
        return applied

    def _step_exact(self, gradient: ExactGradient) -> Verdict:
        norm = gradient.norm() / self._label_tokens
        if not math.isfinite(norm):
            gradient.clear()
            return Verdict(False, "non-finite gradient", float("nan"))
        scale = min(1.0, self._clip / (norm + 1e-6)) if self._clip else 1.0
        flats = [torch.zeros_like(flat.data) for flat in self._flats()]
        targets = [flats[place.flat].narrow(0, place.offset, place.count) for place in self._owned]
        gradient.write(targets, scale / self._label_tokens)
        gradient.clear()
        self._engine.optimizer.averaged_gradients = {number: _Averaged(flat) for number, flat in enumerate(flats)}
        if not self._advance():
            raise RuntimeError(f"DeepSpeed refused a gradient of norm {norm}, which is finite")
        return Verdict(True, None, norm)

    def _step_unsharded(self) -> Verdict:
        learning = [parameter for _, parameter in self._trainable if parameter.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in learning if each.grad is not None])
        size = float(norm)
        if not math.isfinite(size):
            self._engine.zero_grad()
            return Verdict(False, "non-finite gradient", float("nan"))
        if self._clip and size > self._clip:
            nn.utils.clip_grads_with_norm_(learning, self._clip, norm)
        if not self._advance():
            raise RuntimeError(f"DeepSpeed refused a gradient of norm {size}, which is finite")
        return Verdict(True, None, size)

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The torch optimizer under ZeRO's."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each trainable parameter's gradient, after the last backward and before the step.

        Gathers one whole gradient after the other: a diagnosis, not for every step.
        """
        if self._exact is not None:
            norms = [norm / self._label_tokens for norm in self._exact.norms()]
            return dict(zip((name for name, _ in self._trainable), norms, strict=True))
        norms = {}
        for name, parameter in self._trainable:
            gradient = safe_get_full_grad(parameter)
            norms[name] = float(gradient.float().norm()) if gradient is not None else 0.0
        return norms

    def weight_norms(self) -> dict[str, float]:
        """The norm of each trainable parameter's fp32 weights, from the spans, without gathering."""
        squares = dict.fromkeys((name for name, _ in self._trainable), 0.0)
        for span in self.spans():
            squares[span.name] += float(span.tensors[WEIGHT].double().square().sum())
        totals = self.world.total_floats(squares.values())
        return {name: total**0.5 for name, total in zip(squares, totals, strict=True)}

    def hyperparameters(self) -> list[dict[str, Any]]:
        """What AdamW's parameter groups are set to, without the parameters."""
        return [{k: v for k, v in group.items() if k != "params"} for group in self._base.param_groups]

    # -- the state, as spans -------------------------------------------------------------------------------------

    def adam_step(self) -> int:
        """Updates that AdamW itself has counted."""
        return int(next((float(state["step"]) for state in self._base.state.values() if "step" in state), 0.0))

    def spans(self) -> list[Span]:
        """The pieces this rank is to save: together, over all ranks, each element of the state once."""
        self._create_moments(self.adam_step())
        return self._spans(whole=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each trainable parameter, whole."""
        return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._trainable}

    def load(self, read: SpanReader, adam_step: int) -> None:
        """Fill the state of this rank from `read`, whatever stage and world size wrote it. Collective."""
        self._create_moments(adam_step)
        optimizer = self._engine.optimizer
        if self.stage == 3:
            optimizer.checkpoint_event_prologue()  # drop gathered copies
        with torch.no_grad():
            for span in self._spans(whole=True):
                for first in range(0, span.count, PIECE):
                    count = min(PIECE, span.count - first)
                    held = read(span.name, span.shape, span.start + first, count)
                    for part, tensor in span.tensors.items():
                        tensor[first : first + count].copy_(held[part])
            if self.stage == 3:
                for number, master in enumerate(optimizer.fp32_partitioned_groups_flat):
                    computed = optimizer.fp16_partitioned_groups_flat[number]
                    computed.data.copy_(master.data)
                    group = optimizer.fp16_partitioned_groups[number]
                    for shard, fresh in zip(group, optimizer.unflatten(computed, group), strict=True):
                        shard.data = fresh.data
                optimizer.checkpoint_event_epilogue()
            elif self.stage:
                optimizer._hp_optimizer_states_linked = False
                optimizer.update_lp_params()

    def _flats(self) -> list[Tensor]:
        """The fp32 tensors that the torch optimizer updates: DeepSpeed's flat partitions, or the parameters."""
        optimizer = self._engine.optimizer
        if self.stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self.stage:
            partitions = getattr(optimizer, "single_partition_of_fp32_groups", None)
            return list(partitions if partitions is not None else optimizer.fp32_groups_flat_partition)
        return [parameter for _, parameter in self._trainable]

    def _create_moments(self, adam_step: int) -> None:
        """AdamW creates its moments at its first step; a checkpoint needs them before."""
        for flat in self._flats():
            state = self._base.state[flat]
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(flat.data)
            state["step"] = torch.tensor(float(adam_step), device=flat.device)  # one of its own: never shared

    def _spans(self, whole: bool) -> list[Span]:
        """The pieces this rank holds; at stage 0, where each holds all, its share, or all of it for `whole`."""
        found, flats = [], self._flats()
        for place in self._places(whole):
            flat = flats[place.flat]
            state = {WEIGHT: flat.data, **{moment: self._base.state[flat][moment] for moment in MOMENTS}}
            views = {part: held.view(-1).narrow(0, place.offset, place.count) for part, held in state.items()}
            found.append(Span(place.name, place.shape, place.start, views))
        return found

    def _places(self, whole: bool) -> Iterator[_Place]:
        """Where the pieces of `_spans` lie in `_flats`."""
        optimizer = self._engine.optimizer
        for number, (name, parameter) in enumerate(self._trainable):
            if self.stage == 3:
                flat, offset, partition = optimizer.grad_position[optimizer.get_param_id(parameter)]
                shape, start = tuple(parameter.ds_shape), self.world.rank * parameter.ds_tensor.ds_numel
                count = min(partition, max(0, parameter.ds_numel - start))  # the last partition is padded
            elif self.stage:
                mapping, shape = parameter._hp_mapping, tuple(parameter.shape)
                if mapping is None:
                    continue
                piece = mapping.lp_fragment_address
                flat, offset = mapping.param_group_index, mapping.hp_fragment_address.start
                start, count = piece.start, piece.numel
            else:
                flat, shape, elements = number, tuple(parameter.shape), parameter.numel()
                share = elements if whole else -(-elements // self.world.size)
                start = offset = 0 if whole else min(self.world.rank * share, elements)
                count = min(share, elements - start)
            if count > 0:
                yield _Place(name, shape, start, count, flat, offset)
