"""lm-eval's own model class on an exported directory, and ours on the run: the same tasks, the same figures."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine
from tests.trainer.lm_eval_tasks import write_tasks
from trainer.hf.export import export
from trainer.local_tasks import answered, read_tasks
from trainer.scores import load_model

LONG = " ".join(map(str, range(80)))
"""Longer than the context of 64 tokens, and nowhere alike."""


@pytest.fixture(scope="session")
def hflm() -> Any:
    """lm-eval's model of transformers, which take seconds to load."""
    from lm_eval.models.huggingface import HFLM

    return HFLM


def test_an_exported_model_gets_the_same_figures(hflm: Any, straight: CommandLine, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    from trainer.harness import Harnessed

    loaded, place = load_model(str(straight.run("straight"))), tmp_path / "exported"
    export(str(straight.run("straight")), place, "fp32", False, None, lambda said: None)
    tasks = read_tasks(str(write_tasks(tmp_path / "tasks", "choice", "text", "whole")), str(tmp_path / "cache"))
    ours, _ = answered(loaded, [dict(task) for task in tasks])
    model = hflm(
        str(place), device="cpu", dtype="float32", batch_size=1, max_length=64,
        prefix_token_id=loaded.inputs.tokenizer.eos_id,
    )  # fmt: skip
    theirs = simple_evaluate(
        model, tasks=tasks, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True
    )
    assert theirs is not None
    asked = [Instance("loglikelihood", {}, ("Q: What is kept?\nA:", answer), 0) for answer in (" names", " the sea ")]
    asked += [Instance("loglikelihood", {}, (context, "names are kept"), 0) for context in ("", LONG)]
    for (found, greedy), (wanted, their_greedy) in zip(
        Harnessed(loaded).loglikelihood(asked, disable_tqdm=True), model.loglikelihood(asked, disable_tqdm=True),
        strict=True,
    ):  # fmt: skip
        assert (found, greedy) == (pytest.approx(wanted, abs=1e-4), their_greedy)
    told = {"until": ["e"], "max_gen_toks": 20}
    asked = [Instance("generate_until", {}, (text, told), 0) for text in ("What is kept?", "The list of", LONG)]
    texts = Harnessed(loaded).generate_until(asked)
    assert texts == model.generate_until(asked, disable_tqdm=True)
    assert any(texts)
    for task, name in (("choice", "acc"), ("text", "exact_match"), ("whole", "bits_per_byte")):
        wanted = theirs["results"][f"local_{task}"][f"{name},none"]
        assert ours["results"][f"local_{task}"][f"{name},none"] == pytest.approx(wanted, rel=1e-5)
