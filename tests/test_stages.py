"""A run that goes on with a stage it was not begun with: another source, another row length, nothing moved."""

import signal
from pathlib import Path

import numpy as np
import pytest

from data.trace import documents_at
from tests.conftest import CommandLine
from tests.corpora import texts
from trainer import record
from trainer.inputs import open_inputs
from trainer.run import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

START, BATCH = 216, 12  # the appended stage's first position, 18 updates of 24


@pytest.fixture(scope="module")
def more(luban: CommandLine) -> Path:
    """A second dataset, with the tokenizer of the first."""
    folder = luban.home / "more"
    folder.mkdir()
    for number, text in enumerate(texts(500_000)[-12:]):
        (folder / f"{number:04d}.txt").write_text(text, "utf-8")
    luban(
        "data", "build", "folder", "name=more", f"sources=[{{kind: folder, path: {folder}}}]", "split.valid=0.2",
        f"tokenizer.reuse={luban.home}/datasets/tiny", "shard_tokens=5000",
    )  # fmt: skip
    return luban.home / "datasets" / "more"


def stages(luban: CommandLine, more: Path, start: int, first: str = "") -> list[str]:
    sources = f"{{tiny: {{dataset: {luban.home}/datasets/tiny}}, more: {{dataset: {more}, max_epochs: 3}}}}"
    one, two = f"{{weights: {{tiny: 1}}{first}}}", f"{{start: {start}, weights: {{tiny: 1, more: 3}}, context: 32}}"
    return ["data.dataset=null", f"data.sources={sources}", f"data.stages=[{one}, {two}]"]


@pytest.fixture(scope="module")
def refused(luban: CommandLine, straight: CommandLine, more: Path) -> list[str]:
    """What a run, begun as `straight` was and stopped, says to stages that would move what it has read."""
    process = luban.start_pretrain("grown", "engine.micro_batch=1")  # slowly
    luban.wait_for("grown", 1, lambda event: event["event"] == "step" and event["step"] >= 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 75
    wrong = [(12, ""), (217, ""), (START, ", window: 3")]
    return [luban.pretrain("grown", *stages(luban, more, *each), code=2) for each in wrong]


@pytest.fixture(scope="module")
def grown(luban: CommandLine, refused: list[str], more: Path) -> Path:
    """The same run, gone on with a stage appended."""
    assert "epochs of each source in 288 rows" in luban.pretrain("grown", *stages(luban, more, START))
    return luban.run("grown")


def test_a_stage_that_would_move_what_was_read_is_refused_by_name(refused: list[str]) -> None:
    early, odd, changed = refused
    assert "a stage begins now at position 12, and the run has read" in early
    assert "starts at row 217, which is in the middle of an update of 12 rows" in odd
    assert "window of stage 0 was 2, and is 3 now" in changed


def test_earlier_positions_are_unchanged_and_later_ones_are_of_the_new_stage(luban: CommandLine, grown: Path) -> None:
    before, after = (record.load(run).lineage() for run in (luban.run("straight"), grown))
    assert [event["positions"] for event in before] == [event["positions"] for event in after]
    for old, new in zip(before, after, strict=True):
        assert (old["rows"] == new["rows"]) == (new["positions"][0] < START)
        assert new["labels"] == BATCH * (64 if new["positions"][0] < START else 32)
    inputs = open_inputs(read_recipe(grown))
    places = inputs.order.places(np.arange(START, 288))
    assert list(inputs.datasets) == ["tiny", "more"]
    assert abs(int(places.source.sum()) - 54) <= 12  # three of four are of `more`, in a block that isn't full


def test_the_lineage_over_both_stages_is_verified(luban: CommandLine, grown: Path) -> None:
    said = luban("verify", "grown")
    assert "everything holds" in said and "2 stage(s) of 2 source(s)" in said
    assert "288 rows" in said and "tiny, more: every shard re-read" in said


def test_each_source_is_validated_by_itself_and_together(grown: Path) -> None:
    (*_, event) = record.load(grown).attempts[-1].of("evaluation")
    figures = {name: held["loss"] for name, held in event["sources"].items()}
    assert set(figures) == {"tiny", "more"}
    assert event["metrics"]["loss"] == pytest.approx((figures["tiny"] + 3 * figures["more"]) / 4)
    lines = [line for line in record.load(grown).metrics() if line.get("kind") == "evaluation"]
    assert lines[-1]["evaluation/valid/more/loss"] == figures["more"]


def test_each_source_shows_how_often_it_was_read(grown: Path) -> None:
    shown = [line for line in record.load(grown).metrics() if "train/epoch/more" in line]
    assert shown[0]["train/epoch/more"] == 0 < shown[-1]["train/epoch/more"]
    read = open_inputs(read_recipe(grown)).order.read(288)
    assert {name: shown[-1][f"train/epoch/{name}"] for name in ("tiny", "more")} == read


def test_a_document_is_traced_to_the_steps_that_saw_it_and_back(luban: CommandLine, grown: Path) -> None:
    inputs = open_inputs(read_recipe(grown))
    seen = list(documents_at(inputs.sources, "train", inputs.order, np.arange(288)))
    document = max((each for each in seen if each.dataset == "more"), key=lambda each: len(each.positions))
    said = luban("data", "trace", "grown", "--document", document.id)
    for position in document.positions[:3]:
        assert f"{position:,}" in said
    step = document.positions[0] // BATCH + 1
    assert f"steps {step}" in said
    assert document.id in luban("data", "trace", "grown", "--step", str(step))
    assert "no step 99" in luban("data", "trace", "grown", "--step", "99", code=2)
    assert "has the id 'nowhere'" in luban("data", "trace", "grown", "--document", "nowhere", code=2)
    assert "say what to trace" in luban("data", "trace", "grown", code=2)
