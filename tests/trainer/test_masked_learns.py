"""A small BERT on real text learns more than how frequent tokens are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import settings
from data.build.build import build
from data.corpus.source import Source
from data.recipe import DatasetRecipe, Dedup, Split, TokenizerTraining
from tests.corpora import texts
from tests.ranks import launch
from trainer import record
from trainer.recipe import Recipe
from trainer.world import World

SETTINGS = (
    "model.family=bert", "model.context=64", "model.hidden_size=64", "model.num_hidden_layers=1",
    "model.num_attention_heads=2", "optimizer.lr=3e-3", "schedule.warmup_steps=20", "train.batch_rows=32",
    "train.steps=300", "checkpoint.every_steps=0", "evaluate.every_steps=0", "evaluate.rows=64", "log.wandb=off",
)  # fmt: skip


def train(world: World, run: Path) -> dict[str, float]:
    """Train; the unigram yardstick of the validation rows."""
    from trainer.evaluate import unigram_baseline
    from trainer.loop import Loop
    from trainer.session import begin

    session = begin(run, world, "start")
    Loop(session, SimpleNamespace(asked=False, reason=None)).train()  # pyright: ignore[reportArgumentType]
    session.feed.close()
    return unigram_baseline(session.inputs.sources, session.fixed["data"])


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 1.4 MB of English in documents of 1,500 characters."""
    folder = tmp_path_factory.mktemp("prose")
    held = [text for text in texts(4_000_000) if text.isascii()]
    parts = [text[at : at + 1500] for text in held for at in range(0, len(text), 1500)][:1000]
    (folder / "parts.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    wanted = DatasetRecipe(
        name="parts", sources=(Source(kind="jsonl", path=str(folder / "parts.jsonl")),), dedup=Dedup(near=False),
        tokenizer=TokenizerTraining(vocab_size=1024), split=Split(valid=0.1), shard_tokens=50_000, workers=1,
    )  # fmt: skip
    return build(wanted, folder / "dataset").folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_masked_loss_on_unseen_text_falls_below_that_of_token_frequencies(prose: Path, tmp_path: Path) -> None:
    given = [*SETTINGS, f"data.dataset={prose}", "name=learns"]
    (tmp_path / "recipe.yaml").write_text(settings.dump(settings.load(Recipe, None, given)))
    (unigram,) = launch(train, 1, tmp_path, folder=tmp_path, timeout_s=360)
    (attempt,) = record.load(tmp_path).attempts
    (evaluation,) = attempt.of("evaluation")
    figures = evaluation["metrics"]
    assert figures["tokens"] == unigram["tokens"]
    assert figures["loss"] < unigram["loss"] - 0.15
    assert figures["accuracy"] > 1.2 * unigram["accuracy"]
