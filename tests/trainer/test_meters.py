import math
import subprocess
import sys

import pytest

from data import settings
from trainer.clock import Clock
from trainer.meters import (
    Flops,
    Meter,
    bits_per_byte,
    flops_per_token,
    mfu_pct,
    peak_flops,
    peak_memory_gib,
    perplexity,
)
from trainer.objectives.rows import text_figures
from trainer.recipe import Model, Recipe
from trainer.units import duration, printable, short, size


class Time:
    """Time that passes when told to, and a clock that measures it."""

    def __init__(self):
        self.now = 100.0
        self.clock = Clock(lambda: round(1e9 * self.now), began=0)
        self.clock.enter("compute")


def test_perplexity_and_bits_per_byte_of_a_uniform_guess():
    assert perplexity(math.log(256)) == pytest.approx(256)
    assert bits_per_byte(math.log(256), tokens_per_byte=1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), tokens_per_byte=0.25) == pytest.approx(2)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_flops_count_each_weight_six_times_and_attention_both_ways():
    model = Model(hidden_size=64, num_hidden_layers=2, context=128, num_attention_heads=4)
    tied = flops_per_token(model, parameters=100_000, vocab_size=1000)
    attention = 12 * 2 * 128 * 64
    assert tied == Flops(causal=600_000 + attention / 2, full=600_000 + attention)
    untied = model.model_copy(update={"tie_word_embeddings": False})
    assert flops_per_token(untied, 164_000, 1000).full == 600_000 + attention


def test_flops_agree_with_torch_counting_the_same_products():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = Model(hidden_size=64, intermediate_size=128, num_hidden_layers=2, context=32, num_attention_heads=4,
                  num_key_value_heads=4)  # fmt: skip
    vocab, width, rows = 512, 64, 4 * 32
    sizes = [(width, width)] * 4 + [(width, 128), (width, 128), (128, width)]
    weights = [torch.zeros(size, requires_grad=True) for _ in range(2) for size in sizes]
    head = torch.zeros(width, vocab, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        for weight in [*weights, head]:
            inputs = torch.zeros(rows, weight.shape[0], requires_grad=True)
            (inputs @ weight).sum().backward()
    parameters = sum(weight.numel() for weight in weights) + head.numel()
    attention = 12 * 2 * 32 * width
    assert flops_per_token(model, parameters, vocab).full - attention == counter.get_total_flops() / rows


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "transformer"])
def test_the_weights_of_every_family_are_multiplied_as_often_as_torch_counts(family):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.models.build import build
    from trainer.models.initialize import initialize

    sizes = {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "context": 16,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    model = Model.model_validate(sizes | {"family": family})
    real, rows, both = build(model, 640), 4, model.is_encoder_decoder
    initialize(real, 1)
    ids = torch.zeros(rows, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        (real(ids, ids) if both else real(ids)).sum().backward()
    products = ("aten.mm", "aten.addmm")  # attention counts in some of torch's kernels only
    counted = sum(
        flops for each, flops in counter.get_flop_counts()["Global"].items() if str(each).startswith(products)
    )
    tokens = rows * 16 * (1 + both)
    parameters = sum(each.numel() for each in real.parameters())
    said = flops_per_token(model, parameters, 640, labels=0.5 if both else 1.0)
    scores = 12 * 16 * 96 * 3 * (1.5 if both else 1)
    assert said.full - scores == pytest.approx(counted / tokens, rel=0.02)  # norms and biases count as weights
    hidden_by_masks = {"llama": 1 / 2, "gpt2": 1 / 2, "bert": 0, "t5": 1 / 6, "transformer": 1 / 6}[family]
    assert said.full - said.causal == pytest.approx(hidden_by_masks * scores)


def test_an_encoder_s_output_projection_counts_for_labels_only():
    model = Model(family="bert")
    every, few = (flops_per_token(model, 5_000_000, 8192, labels=share).full for share in (1.0, 0.15))
    assert every - few == pytest.approx(6 * 0.85 * 8192 * model.hidden_size)


def test_a_text_objective_says_how_many_of_its_tokens_are_labels():
    def figures(*overrides: str) -> tuple[int, float]:
        return text_figures(settings.load(Recipe, None, ["model.context=512", *overrides]))

    assert figures() == (512, 1.0)
    assert figures("model.family=bert") == (512, 76 / 512)
    assert figures("model.family=t5") == (626, 114 / 626)  # 512 for the encoder, 114 for the decoder
    assert figures("model.family=bert", "objective.kind=classification") == (512, 1.0)


def test_frozen_weights_never_raise_the_figure():
    model = Model()
    whole = flops_per_token(model, 3_000_000, 8192)
    partly = flops_per_token(model, 3_000_000, 8192, trainable=1_000_000)
    assert partly.full == 6 * 1_000_000 + 2 * 2_000_000 + 4 * 6 * 256 * 192 < whole.full


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
    ],
)
def test_peak_of_a_known_device(name, teraflops):
    assert peak_flops(name, "bf16") == teraflops * 1e12
    assert peak_flops(name, "fp32") is None


@pytest.mark.parametrize("name", ["", "cpu", "NVIDIA B300", "NVIDIA H200 MIG 1g.18gb", "NVIDIA A100X", "NVIDIA A10G"])
def test_an_unknown_device_has_no_peak_and_no_mfu(name):
    peak = peak_flops(name, "bf16")
    assert peak is None
    assert mfu_pct(1e9, 1e9, peak) is None


def test_mfu_above_one_hundred_is_refused_with_its_numbers():
    assert mfu_pct(50, 1.0, 100.0) == 50
    with pytest.raises(ValueError, match=r"101 tokens/s .* 101 %"):
        mfu_pct(101, 1.0, 100.0)


def meter(clock, **changes):
    own = {"steps": 100, "ranks": 2, "tokens_per_byte": 0.5, "epoch_tokens": 1000, "clock": clock.clock}
    return Meter(**(own | changes))


def line(subject, step, loss=2.0):
    return subject.line(step=step, labels=step * 100, loss=loss, grad_norm=1.0, lr=1e-3, applied=step, skipped=0)


def run(subject, clock, steps, seconds=2.0, waited=0.5):
    for _ in range(steps):
        with clock.clock.of("data_wait"):
            clock.now += waited
        clock.now += seconds - waited
        subject.step(100)


def test_speed_excludes_the_first_step_and_pauses_but_the_eta_does_not():
    clock = Time()
    subject = meter(clock)
    run(subject, clock, 1, seconds=60)
    run(subject, clock, 10)
    with clock.clock.of("evaluation"):
        clock.now += 40
    run(subject, clock, 1)
    values = line(subject, 12)
    assert values["speed/tokens_per_s"] == pytest.approx(50)
    assert values["speed/tokens_per_s_per_rank"] == pytest.approx(25)
    assert values["speed/step_ms"] == pytest.approx(2000)
    assert values["speed/data_wait_pct"] == pytest.approx(25)
    assert values["eta_s"] == pytest.approx(88 * (22 + 40) / 11)
    assert values["train/epoch"] == pytest.approx(1.2)
    assert "speed/mfu_pct" not in values


def test_only_a_loss_of_tokens_has_a_perplexity_and_counts_tokens():
    values = line(meter(Time()), 5)
    assert values["train/tokens"] == 500
    assert values["train/perplexity"] == pytest.approx(math.exp(2))
    assert values["train/bits_per_byte"] == pytest.approx(2 / math.log(2) * 0.5)
    values = line(meter(Time(), counts="examples", tokens_per_byte=None, epoch_tokens=None), 5)
    assert values["train/examples"] == 500
    assert not {"train/tokens", "train/perplexity", "train/bits_per_byte"} & set(values)
    assert "train/perplexity" not in line(meter(Time(), mixed=True), 5)


def test_each_line_measures_its_own_interval():
    clock = Time()
    subject = meter(clock)
    run(subject, clock, 6)
    line(subject, 6)
    run(subject, clock, 5, seconds=4.0)
    assert line(subject, 11)["speed/step_ms"] == pytest.approx(4000)
    assert "speed/step_ms" not in line(subject, 11)


def test_a_line_that_comes_early_or_late_does_not_move_the_speed():
    clock = Time()
    subject = meter(clock)
    run(subject, clock, 5)
    clock.now += 1.9  # in the middle of the next step
    assert line(subject, 5)["speed/step_ms"] == pytest.approx(2000)
    clock.now -= 1.9
    run(subject, clock, 4)
    assert line(subject, 9)["speed/step_ms"] == pytest.approx(2000)


def test_an_impossible_mfu_is_left_out_and_said_once():
    clock = Time()
    subject = meter(clock, flops=Flops(1e15, 2e15), device_name="NVIDIA H200", precision="bf16")
    for step in (5, 10):
        run(subject, clock, 5, seconds=0.001)
        assert not {"speed/mfu_pct", "speed/mfu_full_pct"} & set(line(subject, step))
    assert len(subject.notes) == 1
    assert "no MFU is shown" in subject.notes[0]


def test_mfu_is_of_one_rank_by_both_conventions():
    clock = Time()
    subject = meter(clock, flops=Flops(1e9, 2e9), device_name="NVIDIA H200", precision="bf16")
    run(subject, clock, 11, seconds=0.01)
    values = line(subject, 11)
    assert values["speed/mfu_pct"] == pytest.approx(100 * 5000 * 1e9 / 989.4e12)
    assert values["speed/mfu_full_pct"] == pytest.approx(2 * values["speed/mfu_pct"])


def test_peak_memory_is_this_process_s_own_even_when_its_parent_is_large():
    held = bytearray(200 << 20)
    held[::4096] = b"x" * len(held[::4096])
    program = "from trainer.meters import peak_memory_gib; print(peak_memory_gib('cpu'))"
    child = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert 0.005 < child < peak_memory_gib("cpu") - 0.15


def test_units_read_well():
    assert [duration(each) for each in (0.4, 59, 61, 7265, 90000, math.nan)] == [
        "0 s", "59 s", "1 min 01 s", "2 h 01 min", "1 d 01 h", "?",
    ]  # fmt: skip
    assert [short(each) for each in (0, 950, 12_345, 4_560_000)] == ["0", "950", "12.3k", "4.56M"]
    assert size(1 << 20) == "1 MiB"
    assert printable("a\x1b[2Jb\u202ec\n\t") == "a·[2Jb·c\n\t"
