"""Fine-tuning on a dataset of examples, through the real command, on a real pretrained run."""

import gzip
import json

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from luban import app
from tests.conftest import SETTINGS, CommandLine
from trainer import checkpoint, record
from trainer.run import Source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def pretrained(straight: CommandLine) -> CommandLine:
    """The run `straight`, and a dataset `pairs` that is easy to learn by heart."""
    luban = straight
    if (luban.home / "datasets" / "pairs" / "dataset.json").exists():
        return luban
    with (luban.home / "pairs.jsonl").open("w") as file:
        for number in range(400):
            word = ("red", "green", "blue")[number % 3]
            pair = {"question": f"Box {number} is painted {word}. Which colour?", "answer": f"The box is {word}."}
            file.write(json.dumps(pair) + "\n")
    luban(
        "data", "build", "name=pairs", "kind=examples",
        f"sources=[{{kind: jsonl, path: {luban.home}/pairs.jsonl, columns: {{prompt: question, completion: answer}}}}]",
        "task.kind=prompt_completion", "task.max_tokens=65", "task.min_completion_characters=1", "dedup.near=false",
        "tokenizer.reuse=datasets/tiny", "split.valid=0.1",
    )  # fmt: skip
    return luban


def finetuning(luban: CommandLine, name: str, *more: str) -> tuple[str, ...]:
    """The command that fine-tunes `straight` on `pairs`."""
    settings = [setting for setting in SETTINGS if not setting.startswith("model.")]
    return (
        "finetune", "docstrings", f"name={name}", f"data.dataset={luban.home}/datasets/pairs", *settings,
        "train.steps=40", "evaluate.prompts=[]", "evaluate.rows=0", "evaluate.every_steps=10", "optimizer.lr=1e-2",
        *more, "--from", "straight",
    )  # fmt: skip


def finetune(luban: CommandLine, name: str, *more: str, code: int = 0) -> str:
    return luban(*finetuning(luban, name, *more), code=code)


def losses(luban: CommandLine, name: str) -> list[float]:
    history = record.load(luban.run(name))
    return [event["metrics"]["loss"] for attempt in history.attempts for event in attempt.of("evaluation")]


def test_fine_tuning_improves_the_completions_clearly(pretrained: CommandLine) -> None:
    finetune(pretrained, "tuned")
    figures = losses(pretrained, "tuned")
    assert figures[-1] < 0.6 * figures[0]
    before = pretrained("evaluate", "straight", "--dataset", "datasets/pairs", "--generations", "0")
    after = pretrained("evaluate", "tuned@best", "--generations", "8")
    assert bits(after) < 0.5 * bits(before)
    assert "BLEU" in after
    assert "everything holds" in pretrained("verify", "tuned")


def bits(text: str) -> float:
    return float(next(line for line in text.splitlines() if "bits per byte" in line).split()[3])


def test_only_the_completion_counts_in_the_loss(pretrained: CommandLine) -> None:
    history = record.load(pretrained.run("tuned"))
    labels = [event["labels"] for event in history.lineage()]
    rows = [event["positions"][1] - event["positions"][0] for event in history.lineage()]
    each = sum(labels) / sum(rows)
    assert 3 < each < 20  # "The box is blue." and its end, not the question


def test_frozen_layers_stay_bit_by_bit_and_are_stored_once(pretrained: CommandLine) -> None:
    finetune(pretrained, "top", 'train.trainable=["model.layers.1.*"]', "engine.zero_stage=3")
    base = Source.parse(str(pretrained.run("straight"))).checkpoint().weights()
    held = Source.parse(str(pretrained.run("top"))).checkpoint()
    assert set(held.manifest["parameters"]) == {name for name in base if name.startswith("model.layers.1.")}
    weights = held.weights()
    for name, tensor in base.items():
        assert torch.equal(weights[name], tensor) == (not name.startswith("model.layers.1.")), name
    assert len(list((pretrained.run("top") / "base").iterdir())) == 1
    assert "everything holds" in pretrained("verify", "top")


def test_patience_ends_the_run_and_the_best_checkpoint_is_kept(pretrained: CommandLine) -> None:
    text = finetune(
        pretrained, "patient", "train.steps=200", "train.patience=2", "optimizer.lr=0.3", "schedule.kind=constant",
        "checkpoint.keep_last=1", "checkpoint.every_steps=5", "evaluate.every_steps=5",
    )  # fmt: skip
    assert "no better validation loss in 2 evaluations; the best was at step " in text
    history = record.load(pretrained.run("patient"))
    assert history.attempts[-1].last_step < 200
    evaluations = [event for attempt in history.attempts for event in attempt.of("evaluation")]
    best = min(evaluations, key=lambda event: event["metrics"]["loss"])
    kept = Source.parse(f"{pretrained.run('patient')}@best").checkpoint()
    assert kept.step == best["step"]
    assert len(checkpoint.names(pretrained.run("patient"))) == 2
    again = pretrained("evaluate", "patient@best", "--generations", "0")
    assert f"{best['metrics']['loss']:.4f}" in again


def test_text_comes_from_arguments_standard_input_and_beams(
    straight: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pipe gets, and mistakes; in this process, which has loaded torch already."""
    monkeypatch.setenv("LUBAN_HOME", str(straight.home))

    def piped(given: str | None, *words: str) -> Result:
        return CliRunner().invoke(app, ["generate", "straight", *words], input=given)

    one = piped(None, "The", "--tokens", "8").stdout
    assert one.startswith("The")
    beams = piped("The\nOf the\n", "--prompts", "-", "--tokens", "8", "--num-beams", "3", "--samples", "2").stdout
    rows = [json.loads(line) for line in beams.splitlines()]
    assert [row["prompt"] for row in rows] == ["The", "Of the"]
    assert all(len(set(row["texts"])) == 2 for row in rows)
    greedy = json.loads(piped('{"prompt": "The", "id": 3}\n', "--prompts", "-", "--tokens", "8").stdout)
    assert greedy == {"prompt": "The", "id": 3, "texts": [one.removeprefix("The").removesuffix("\n")]}
    for words, message in (
        (("A", "--tokens", "64"), "the model's context holds 64"),
        (("A", "--num-beams", "2", "--temperature", "1"), "--num-beams 2 takes the likeliest texts"),
        (("A", "--samples", "2"), "--samples 2 is more than the 1 that greedy decoding gives: set --temperature"),
        (("A", "--num-beams", "2", "--early-stopping", "soon"), "--early-stopping must be false, true or never"),
        (("A", "--chat"), "one of them"),
        (("A", "--system", "B"), "goes with --chat"),
        (("--chat",), "has learned plain text, not conversations"),
    ):
        assert message in str(piped(None, *words).exception)


def test_norms_a_profile_and_samples_are_written(pretrained: CommandLine) -> None:
    pretrained.pretrain(
        "watched", "log.norms_every=3", "log.profile=[4, 6]", "evaluate.prompts=['The']", "engine.zero_stage=3"
    )
    lines = [json.loads(line) for line in (pretrained.run("watched") / "metrics.jsonl").read_text().splitlines()]
    normed = [line for line in lines if "grad_norm/model.norm.weight" in line]
    assert [line["train/step"] for line in normed] == list(range(3, 25, 3))
    for line in normed:
        parts = [value for name, value in line.items() if name.startswith("grad_norm/")]
        assert sum(value**2 for value in parts) ** 0.5 == pytest.approx(line["train/grad_norm"], rel=1e-3)
        assert line["weight_norm/model.embed_tokens.weight"] > 0
    (trace,) = (pretrained.run("watched") / "logs" / "attempt-1").glob("profile-4-6.json.gz")
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert sum(name == "aten::rms_norm" for name in names) == 2 * 5  # two steps, two norms a block and one at the end
    assert any("Backward" in name for name in names)
    samples = [line["samples"] for line in lines if line["kind"] == "evaluation"]
    assert len(samples) == 2
    assert samples[0][0]["prompt"] == "The"
