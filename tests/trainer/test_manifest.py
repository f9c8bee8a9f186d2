"""A manifest edited by hand, its digest renewed or not, is noticed before a tensor is read, and named."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import settings
from data.errors import UserError
from tests.chaos import play
from tests.ranks import alone
from tests.trainer.saving import save
from tests.trainer.test_checkpoint import together
from trainer import checkpoint, record
from trainer.checkpoint import (
    MOMENTS,
    WEIGHT,
    Checkpoint,
    CorruptCheckpoint,
    Span,
    digest_of,
    folder_name,
    save_frozen,
)
from trainer.manifest import contradiction, file_of, joined, pieces
from trainer.models.decoder import Decoder
from trainer.optimizer import freeze
from trainer.place import DIGEST, Folder
from trainer.recipe import Recipe
from trainer.run import Source
from trainer.verify import check_run
from trainer.weights import give_weights

NAME = folder_name(7, 2)
SHAPES = {"embed.weight": (9, 4), "norm.weight": (5,), "scale": ()}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose embedding lies in two pieces."""
    draw = torch.Generator().manual_seed(1)

    def span(name: str, start: int, count: int) -> Span:
        views = {part: torch.randn(count, generator=draw) for part in (WEIGHT, *MOMENTS)}
        return Span(name, SHAPES[name], start, views)

    held = [
        [span("embed.weight", 0, 20), span("norm.weight", 0, 5)],
        [span("embed.weight", 20, 16), span("scale", 0, 1)],
    ]
    state = {"step": 7, "attempt": 2, "zero_stage": 1}
    together(2, lambda world: save(tmp_path, NAME, state, held[world.rank], None, world))
    return tmp_path / checkpoint.FOLDER / NAME


def edit(folder: Path, change: Edit, renew: bool = True) -> None:
    """Change the manifest as a person would, who may know of its digest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    digest = manifest.pop("digest")
    change(manifest)
    path.write_text(json.dumps(manifest | {"digest": digest_of(manifest) if renew else digest}))


EDITS: dict[str, tuple[Edit, str]] = {
    "a hole": (lambda m: m["spans"]["embed.weight"][1].__setitem__(0, 24), r"embed.weight without elements 20 to 23"),
    "no beginning": (lambda m: m["spans"]["embed.weight"].pop(0), r"embed.weight without elements 0 to 19"),
    "no end": (lambda m: m["spans"]["embed.weight"].pop(), r"holds 20 elements of embed.weight \(9, 4\), which has 36"),
    "too much": (lambda m: m["spans"]["scale"].append([1, 3, 0]), r"holds 4 elements of scale \(\), which has 1"),
    "an overlap": (lambda m: m["spans"]["embed.weight"][1].__setitem__(0, 19), r"embed.weight twice from element 19"),
    "twice": (lambda m: m["spans"]["norm.weight"].append([0, 5, 1]), r"norm.weight twice from element 0"),
    "nothing": (
        lambda m: m["spans"]["norm.weight"].append([5, 0, 1]),
        r"has 0 elements of norm.weight from 5 on for ra",
    ),
    "two of one rank": (
        lambda m: m["spans"].update({"norm.weight": [[0, 2, 0], [2, 3, 0]]}),
        r"3 elements of norm.weight from 2 on .*",
    ),
    "no file": (lambda m: m["files"].pop(file_of(0)), r"a piece of embed.weight in spans-00000.safetensors, which it"),
    "another file": (lambda m: m["spans"]["scale"][0].__setitem__(2, 3), r"a piece of scale in spans-00003.safetensor"),
    "no state": (lambda m: m["files"].pop("state.json"), r"doesn't list state.json"),
    "no digest": (lambda m: m["files"]["state.json"].pop("xxh3_128"), r"lacks the size or the digest of state.json"),
    "no spans": (lambda m: m["spans"].pop("scale"), r"has scale among its parameters alone"),
    "no shape": (lambda m: m["parameters"].pop("scale"), r"has scale among its spans alone"),
    "another step": (lambda m: m.update(step=8), r"is that of step-000000008.a2"),
    "more ranks": (lambda m: m.update(world=2**70), r"lists 2 files of spans for 1180591620717411303424 ranks"),
    "no step": (lambda m: m.update(step="seven"), r"has 'seven' for its step"),
    "no files": (lambda m: m.pop("files"), r"lacks something or holds it in another form \(KeyError: 'files'\)"),
    "an odd span": (lambda m: m["spans"].update(scale=[[0, 1]]), r"lacks something or holds it in another form"),
    "an odd base": (lambda m: m.update(base=3), r"has 3 for its base"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_manifest_with_a_digest_of_its_own_contradicts_itself(folder, case):
    assert Checkpoint(folder).problems() == []
    change, words = EDITS[case]
    edit(folder, change)
    with pytest.raises(CorruptCheckpoint, match=f"^{NAME}: its manifest.json .*{words}"):
        Checkpoint(folder)


def test_an_edited_manifest_doesn_t_match_its_own_digest(folder):
    edit(folder, lambda manifest: manifest.update(attempt=3), renew=False)
    with pytest.raises(CorruptCheckpoint, match="doesn't match its own digest"):
        Checkpoint(folder)


def other_weights(older: Path, newer: Path) -> None:
    """A flipped bit, and digests that agree with it."""
    path = newer / file_of(0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    size, digest = Folder(newer).digest(path.name)
    edit(newer, lambda m: m["files"].update({path.name: {"bytes": size, DIGEST: digest}}))


def swapped(older: Path, newer: Path) -> None:
    """Each with a manifest of the other's name."""
    older.rename(older.with_name("between"))
    newer.rename(older)
    older.with_name("between").rename(newer)
    for folder in (older, newer):
        step = checkpoint.step_of(folder.name)
        edit(folder, lambda m, folder=folder, step=step: m.update(name=folder.name, step=step))


@pytest.mark.parametrize("change", [other_weights, swapped])
def test_a_checkpoint_whose_manifest_is_another_than_the_record_names_is_found_and_not_gone_on_from(tmp_path, change):
    """Everything in its folder agrees: only the record knows."""
    run = tmp_path / "run"
    play.attempt(run)
    (run / "recipe.yaml").write_text(settings.dump(play.recipe()))
    older, newer = (run / checkpoint.FOLDER / name for name in checkpoint.names(run)[-2:])
    assert next(check_run(run)).equal
    change(older, newer)
    assert Checkpoint(newer).problems() == []
    found = next(check_run(run))
    said = f"{newer.name}: its manifest.json is not the one that the run's record names"
    assert not found.equal
    assert said in found.detail
    with pytest.raises(UserError, match=said):
        Source(run, None).checkpoint()
    play.attempt(run, steps=play.STEPS + 3)
    assert record.load(run).attempts[1].start["adopts"] == (older.name if change is other_weights else None)


def test_spans_moved_to_where_they_are_not_are_refused_when_they_are_read(folder):
    """Nothing contradicts itself here: only the file knows."""
    edit(folder, lambda m: m["spans"].update({"embed.weight": [[0, 16, 1], [16, 20, 0]], "scale": [[0, 1, 0]]}))
    found = Checkpoint(folder)
    with pytest.raises(
        UserError, match=r"spans-00000.safetensors has no elements 0 to 0 of scale\|weight, as manifest"
    ):
        found.read("scale", (), 0, 1)
    edit(folder, lambda m: m["spans"].update({"embed.weight": [[0, 21, 0], [21, 15, 1]]}))
    with pytest.raises(
        UserError, match=r"no elements 0 to 20 of embed.weight\|weight, .*remove this checkpoint to go on"
    ):
        Checkpoint(folder).read("embed.weight", (9, 4), 0, 36)


def test_frozen_weights_that_the_model_lacks_or_has_otherwise_are_refused(tmp_path):
    """What a manifest doesn't name any more would stay uninitialized memory in the model."""
    sizes = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=1",
             "model.num_key_value_heads=1", "train.trainable=[model.norm.weight]"]  # fmt: skip
    recipe = settings.load(Recipe, None, sizes)
    model = Decoder(recipe.model, 128)
    freeze(model, recipe.train.trainable)
    still = {name: each.data for name, each in model.named_parameters() if not each.requires_grad}
    held = Span("model.norm.weight", (16,), 0, {part: torch.zeros(16) for part in (WEIGHT, *MOMENTS)})
    base = save_frozen(tmp_path, still)
    save(tmp_path, NAME, {"step": 7, "attempt": 2, "zero_stage": 1}, [held], base, alone())
    folder = tmp_path / checkpoint.FOLDER / NAME
    assert give_weights(tmp_path, recipe, model, Checkpoint(folder), alone(), []) == base
    first = min(still)
    others: dict[str | None, str] = {None: f"is of another model: .* don't share {first}"}
    others[save_frozen(tmp_path, {first: torch.zeros(1)})] = rf"holds {first} as \(1,\), the model wants"
    others[save_frozen(tmp_path, still | {"b": torch.zeros(1)})] = "is of another model: .* don't share b"
    for other, words in others.items():
        edit(folder, lambda manifest, other=other: manifest.update(base=other))
        with pytest.raises(UserError, match=words):
            give_weights(tmp_path, recipe, model, Checkpoint(folder), alone(), [])


def test_another_model_is_refused_by_the_first_shape_that_differs(folder):
    found = Checkpoint(folder)
    found.refuse_other_model(SHAPES)
    for shapes, words in (
        (
            SHAPES | {"norm.weight": (4,), "scale": (1,)},
            r"holds norm.weight as \(5,\), the model wants \(4,\): it is of another",
        ),
        (SHAPES | {"embed.weight": (4, 9)}, r"holds embed.weight as \(9, 4\), the model wants \(4, 9\)"),
        (SHAPES | {"head.weight": (9, 4)}, r"holds no parameter head.weight: it is of another model"),
        ({"embed.weight": (9, 4), "scale": ()}, r"holds norm.weight \(5,\), the model doesn't: it is of another model"),
    ):
        with pytest.raises(UserError, match=f"{NAME} {words}"):
            found.refuse_other_model(shapes)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=40))
def test_pieces_written_as_runs_are_the_same_pieces(drawn):
    """Neighbours of any size, of ranks that follow each other or leave some out."""
    parts, at, rank = [], 0, 0
    for count, gap in drawn:
        parts.append((at, count, rank))
        at, rank = at + count, rank + 1 + gap
    runs = joined(reversed(parts))
    assert list(pieces(runs)) == parts and len(runs) <= len(parts)
    for start, stop in ((0, 1), (at // 2, at // 2 + 1), (at // 3, at), (0, at)):
        wanted = [part for part in parts if part[0] < stop and part[0] + part[1] > start]
        assert list(pieces(runs, start, stop)) == wanted


def test_even_pieces_of_any_number_of_ranks_are_one_run():
    assert joined((7 * rank, 7, rank) for rank in range(100_000)) == [[0, 7, 0, 100_000]]


def test_a_manifest_that_writes_each_piece_by_itself_is_read_as_before(folder):
    whole = Checkpoint(folder).weights()
    edit(folder, lambda m: m.update(version=1, spans={name: list(pieces(runs)) for name, runs in m["spans"].items()}))
    again = Checkpoint(folder)
    assert again.manifest["version"] == 1 and all(torch.equal(again.weights()[name], whole[name]) for name in whole)


RUNS: dict[str, tuple[list[list[int]], str]] = {
    "short by one rank": ([[0, 7, 0, 999]], r"holds 6993 elements of layer \(7000,\), which has 7000"),
    "a rank twice": ([[0, 7, 0, 999], [6993, 7, 998]], "has 7 elements of layer from 6993 on for rank 998, beside"),
    "runs that overlap in ranks": ([[0, 7, 500, 500], [3500, 7, 0, 501]], "beside its other piece"),
    "a hole between runs": ([[0, 7, 0, 500], [3507, 7, 500, 499]], "holds layer without elements 3500 to 3506"),
    "beyond the world": ([[0, 7, 1, 1000]], "has a piece of layer in spans-01000.safetensors, which it doesn't list"),
    "a file that isn't listed": ([[0, 7, 0, 1000]], ""),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_that_contradict_themselves_are_named(case):
    runs, words = RUNS[case]
    entry = {"bytes": 1, DIGEST: ""}
    manifest = {
        "step": 1, "attempt": 1, "world": 1000, "zero_stage": 3, "base": None, "spans": {"layer": runs},
        "parameters": {"layer": [7000]},
        "files": {"state.json": entry} | {file_of(rank): entry for rank in range(1000)},
    }  # fmt: skip
    if not words:
        assert contradiction(manifest) is None
        del manifest["files"][file_of(400)]
        words = "has a piece of layer in spans-00400.safetensors, which it doesn't list"
    assert re.search(words, contradiction(manifest) or "nothing")


def test_a_thousand_ranks_are_checked_in_a_blink():
    ranks, parameters = 1000, 100
    spans = {f"layer.{number}": [[7 * rank, 7, rank] for rank in range(ranks)] for number in range(parameters)}
    entry = {"bytes": 1, "xxh3_128": ""}
    manifest = {
        "step": 1, "attempt": 1, "world": ranks, "zero_stage": 3, "base": None, "spans": spans,
        "parameters": {name: [7 * ranks] for name in spans},
        "files": {"state.json": entry} | {file_of(rank): entry for rank in range(ranks)},
    }  # fmt: skip
    began = time.process_time()
    assert contradiction(manifest) is None
    assert time.process_time() - began < 2
    spans["layer.99"][999][1] = 6
    assert contradiction(manifest) == "holds 6999 elements of layer.99 (7000,), which has 7000"
