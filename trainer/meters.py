"""Figures of a run: pure arithmetic, and the `Meter` that the loop feeds.

Nothing here touches a tensor, so nothing here can make the host wait for a GPU. The loop counts tokens on the host
as each update is launched, and hands over the loss of the step before as a float when it has long arrived.

A figure that can't be known is left out, not guessed. Model FLOPs utilisation is the usual victim of guessing: other
trainers fall back to an A100's peak for a GPU they don't know, which shows an H200 at 3.2 times its true value. Here a
peak belongs to an exact device name, a slice of a GPU (MIG) has another name and so no peak, and a result above 100 %
is not shown but said to be wrong.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from trainer.clock import Clock
from trainer.models.shapes import block_of, looked_up, parameter_shapes, reads
from trainer.recipe import Model

LN2 = math.log(2)

Counted = Literal["tokens", "examples"]
"""What an objective's labels are."""

DENSE_BF16_TERAFLOPS = (
    (r"NVIDIA B200", 2250.0),
    (r"NVIDIA GH200 \d+GB", 989.4),
    (r"NVIDIA H200", 989.4),
    (r"NVIDIA H200 NVL", 835.5),
    (r"NVIDIA H100 80GB HBM3", 989.4),
    (r"NVIDIA H100 NVL", 835.5),
    (r"NVIDIA H100 PCIe", 756.5),
    (r"NVIDIA A100(-SXM4|-PCIE)-\d+GB|NVIDIA A100 80GB PCIe", 312.0),
    (r"NVIDIA L40S", 362.0),
    (r"NVIDIA L4", 121.0),
    (r"NVIDIA A10", 125.0),
)
"""(the whole device name as the driver gives it, dense bf16 peak in 10^12 FLOP/s), from NVIDIA's data sheets; the
sheets of Hopper and later print the doubled figure "with sparsity", halved here."""


def labels_of(lines: Iterable[Mapping[str, Any]]) -> Counted:
    """What a run's labels are, as its lines of metrics count them."""
    return "examples" if any("train/examples" in line for line in lines) else "tokens"


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where that overflows."""
    return math.exp(loss) if loss < 709 else (math.inf if loss == loss else loss)


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """A loss in nats a token as bits a byte of text: loss / ln 2 * tokens per byte. Unlike perplexity it compares
    models with different tokenizers (Gao et al. 2020, arXiv:2101.00027, section 3.1)."""
    return loss / LN2 * tokens_per_byte


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward, a token."""

    causal: float
    """Attention counted as what a causal mask leaves of it: half; of prefixes as long as not, two thirds."""
    full: float
    """Attention counted as if there were no mask, as PaLM and most published figures do."""


def flops_per_token(
    model: Model, parameters: int, vocab_size: int, trainable: int | None = None, labels: float = 1.0
) -> Flops:
    """6 * (parameters - embeddings) + attention, after Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B).

    6: two operations (multiply, add) in the forward pass and four in the backward pass for each weight. Embeddings are
    looked up and are left out; a tied one is multiplied as the output projection and stays. Attention is
    12 * layers * context * width without a mask and half of that with a causal one; where a row holds several
    documents that can't see each other, this is an upper bound. Recomputed activations don't count.
    An encoder's output projection counts for labels only. Of an encoder-decoder's tokens the labels are the decoder's,
    the others its encoder's, and each is multiplied by the weights of its own side.

    Args:
        model: Its layers, widths and context.
        parameters: All of them; a tied embedding counts once.
        vocab_size: Rows of the embedding.
        trainable: How many of them learn; None: all. Frozen weights count for their forward pass only (2), and so
            does attention next to any: the figure may then be too small, never too large.
        labels: Of encoders and encoder-decoders, the share of a row's tokens that are predicted, above 0, at most 1.
    """
    sizes = {name: prod(shape) for name, shape in parameter_shapes(model, vocab_size).items()}
    head = vocab_size * model.hidden_size
    if model.is_encoder_decoder:
        read = sum(size for name, size in sizes.items() if not looked_up(name) and block_of(name) and reads(name))
        written = sum(size for name, size in sizes.items() if not looked_up(name) and block_of(name)) - read
        multiplied = (1 - labels) * read + labels * (written + head)
    else:
        tables = sum(size for name, size in sizes.items() if looked_up(name))
        untied = 0 if model.tie_word_embeddings else head
        multiplied = parameters - tables - untied + (head if model.is_decoder else labels * head)
    frozen = 0 if trainable is None else min(parameters - trainable, multiplied)
    weights = 6 * (multiplied - frozen) + 2 * frozen
    each = 4 if frozen else 12
    width = model.num_attention_heads * model.head_size
    if not model.is_encoder_decoder:
        attention = each * model.num_hidden_layers * model.context * width
        # The first c of T tokens see c - 1 ... 0 later ones beside those before: c^2 / 2, on average T^2 / 6.
        part = (2 / 3 if model.attention == "prefix" else 1 / 2) if model.is_decoder else 1
        return Flops(causal=weights + attention * part, full=weights + attention)
    source, target = (model.context * share / max(labels, 1 - labels) for share in (1 - labels, labels))
    seen = (1 - labels) * model.num_hidden_layers * source + labels * model.decoder_layers * source
    own = labels * model.decoder_layers * target
    return Flops(causal=weights + each * width * (seen + own / 2), full=weights + each * width * (seen + own))


def peak_flops(device_name: str, precision: str) -> float | None:
    """The device's dense peak in FLOP/s at "bf16", or None: an unknown device, a slice of one, or fp32."""
    if precision != "bf16":
        return None
    return next((tera * 1e12 for name, tera in DENSE_BF16_TERAFLOPS if re.fullmatch(name, device_name)), None)


def mfu_pct(tokens_per_s: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation of one device in percent; None where the peak is unknown.

    Raises:
        ValueError: The result is above 100 %: the peak, the FLOPs or the clock is wrong.
    """
    if peak is None:
        return None
    percent = 100 * tokens_per_s * flops_per_token / peak
    if percent > 100:
        raise ValueError(
            f"{tokens_per_s:.4g} tokens/s at {flops_per_token:.4g} FLOPs each would be {percent:.0f} % of a peak of "
            f"{peak:.4g} FLOP/s: one of the three is wrong, so no MFU is shown"
        )
    return percent


def peak_memory_gib(device: str) -> float:
    """Most memory this process has held so far, in GiB: allocated by torch on "cuda...", resident on "cpu".

    The resident peak is the kernel's VmHWM, not `resource.getrusage`: that one inherits the peak of the process it was
    started from (measured: 613 MiB in a child of 13 MiB).
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii", "replace"), re.MULTILINE)
    return int(found[1]) / 2**20 if found else math.nan


class Meter:
    """Speed and progress of one attempt, as seen by rank 0.

    The loop calls `step` once an update, right after launching it, and `line` when it has a line to write. The first
    step only starts the count: it pays for allocations and the choice of kernels. What the rank's clock holds as
    anything but compute and data wait (evaluation, saving) counts for the ETA but not for the speed.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        steps: int,
        ranks: int,
        counts: Counted = "tokens",
        mixed: bool = False,
        tokens_per_byte: float | None = None,
        epoch_tokens: int | None = None,
        flops: Flops | None = None,
        device: str = "cpu",
        device_name: str = "",
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            clock: This rank's.
            steps: Updates of the whole run.
            ranks: Processes that train together.
            counts: What the labels are. A loss an example has no perplexity.
            mixed: The loss is a sum of several objectives', which has no perplexity either.
            tokens_per_byte: Of the corpus, for bits per byte; None: not shown.
            epoch_tokens: Tokens of one pass over the corpus; None: no epoch shown.
            flops: Of one token; None: no MFU.
            device: "cpu" or "cuda...", for memory.
            device_name: As `torch.cuda.get_device_name` says it, for the peak.
            precision: "bf16" or "fp32".
        """
        self.peak = peak_flops(device_name, precision)
        self.notes: list[str] = []
        """Things that a person should hear once; the loop takes them away when it has said them."""
        self._steps, self._ranks, self._flops, self._device, self._counts = steps, ranks, flops, device, counts
        self._tokens_per_byte, self._epoch_tokens, self._clock = tokens_per_byte, epoch_tokens, clock
        self._has_perplexity = counts == "tokens" and not mixed
        self._began: float | None = None
        self._at = (0.0, 0.0)  # seconds of training, and those of them that waited for data, at the last step
        self._last = self._waited = self._seconds = 0.0
        self._tokens = self._counted = self._all_counted = 0

    def step(self, tokens: int) -> None:
        """One update was launched, of so many tokens over all ranks."""
        trained, waited = self._at
        self._at = self._clock.running("compute", "data_wait"), self._clock.running("data_wait")
        self._last = self._clock.running()
        if self._began is None:
            self._began = self._last
            return
        self._seconds += self._at[0] - trained
        self._waited += self._at[1] - waited
        self._tokens += tokens
        self._counted += 1
        self._all_counted += 1

    def axes(self, step: int, labels: int) -> dict[str, float | int]:
        """Where a line of metrics stands: applied updates, and the labels that these learned from."""
        return {"train/step": step, f"train/{self._counts}": labels}

    def line(
        self, *, step: int, labels: int, loss: float, grad_norm: float, lr: float, applied: int, skipped: int
    ) -> dict[str, float | int]:
        """The metrics of `step` (which may be one behind the step under way), and the speed since the line before.

        Args:
            step: Applied updates after this one.
            labels: Trained on so far.
            loss: Mean over the update's labels, of tokens in nats.
            grad_norm: Of the whole gradient, before clipping.
            lr: Learning rate of this update.
            applied: Applied updates of the run.
            skipped: Skipped updates of the run.
        """
        values = self.axes(step, labels)
        if self._epoch_tokens:
            values["train/epoch"] = labels / self._epoch_tokens
        values["train/loss"] = loss
        if self._has_perplexity:
            values["train/perplexity"] = perplexity(loss)
        if self._tokens_per_byte:
            values["train/bits_per_byte"] = bits_per_byte(loss, self._tokens_per_byte)
        values |= {"train/grad_norm": grad_norm, "train/lr": lr, "train/applied": applied, "train/skipped": skipped}
        values |= self._speed(step)
        values["memory/peak_gib"] = peak_memory_gib(self._device)
        return values

    def _speed(self, step: int) -> dict[str, float | int]:
        """Figures of the steps counted since the last time, by when they were launched: a line may come early, before
        a save, or late, in the middle of the step after it."""
        seconds, counted, tokens, waited = self._seconds, self._counted, self._tokens, self._waited
        if self._began is None or not counted or seconds <= 0:
            return {}
        self._seconds, self._waited, self._tokens, self._counted = 0.0, 0.0, 0, 0
        rate = tokens / seconds
        values: dict[str, float | int] = {
            "speed/tokens_per_s": rate,
            "speed/tokens_per_s_per_rank": rate / self._ranks,
            "speed/step_ms": 1000 * seconds / counted,
            "speed/data_wait_pct": min(100.0, 100 * waited / seconds),
            "eta_s": max(0, self._steps - step) * (self._last - self._began) / self._all_counted,
        }
        if self._flops and self.peak:
            try:
                for name, each in (("mfu_pct", self._flops.causal), ("mfu_full_pct", self._flops.full)):
                    values[f"speed/{name}"] = mfu_pct(rate / self._ranks, each, self.peak) or 0.0
            except ValueError as wrong:
                self.notes.append(str(wrong))
                self.peak = None
                values.pop("speed/mfu_pct", None)
        return values
