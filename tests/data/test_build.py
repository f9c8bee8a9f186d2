import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import workplace
from data.build import build, train_tokenizer
from data.dataset import FILE, load_dataset
from data.errors import UserError
from data.pipeline import Pipeline
from data.progress import Lines, Silent
from data.recipe import Clean, DatasetRecipe, Source, Split, Task, TokenizerTraining
from data.shards import IN_LOSS, SPLITS, MappedShard
from data.tokenizer_training import train
from tests.data.conftest import english

ROOT = Path(__file__).parents[2]


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def texts(dataset, split):
    tokenizer = dataset.tokenizer()
    return {row.id: tokenizer.decode(tokens) for row, tokens in dataset.documents(split)}


def folder_recipe(folder, **settings):
    given = {
        "name": "made",
        "sources": (Source(kind="folder", path=folder, name="made"),),
        "split": Split(valid=0.2),
        "tokenizer": TokenizerTraining(vocab_size=768),
        "workers": 1,
    }
    return DatasetRecipe(**given | settings)


@pytest.fixture
def made_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(english(number, 120))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_the_bytes_do_not_depend_on_the_number_of_workers(small_dataset, small_recipe, tmp_path, workers):
    again = build(small_recipe.model_copy(update={"workers": workers}), tmp_path / "other name")
    assert digests(again.folder) == digests(small_dataset.folder)


def test_a_second_build_and_another_executor_give_the_same_bytes(small_dataset, small_recipe, tmp_path):
    with ThreadPoolExecutor(3) as hands:
        again = build(small_recipe, tmp_path / "again", executor=hands)
    assert digests(again.folder) == digests(small_dataset.folder)


def test_small_chunks_give_the_same_shards(small_dataset, small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("data.pipeline._CHUNK_CHARACTERS", 50_000)
    again = build(small_recipe, tmp_path / "again")
    assert digests(again.folder) == digests(small_dataset.folder)


def test_every_kept_document_comes_back_unchanged_and_once(small_dataset, source_folder):
    everything = {}
    for split in SPLITS:
        held = texts(small_dataset, split)
        assert not everything.keys() & held.keys()
        everything |= held
    for id_, text in everything.items():
        assert text == (source_folder.parent / id_).read_text("utf-8")
    dropped = sum(d["documents"] for stage in small_dataset.info["stages"] for d in stage["dropped"].values())
    assert len(everything) + dropped == len(list(source_folder.rglob("*.py")))


def test_the_account_adds_up(small_dataset):
    stages = small_dataset.info["stages"]
    for stage, following in itertools.pairwise(stages):
        assert stage["documents_out"] == following["documents_in"]
        assert stage["bytes_out"] == following["bytes_in"]
        assert stage["documents_in"] - stage["documents_out"] == sum(d["documents"] for d in stage["dropped"].values())
        told = sum(each["bytes"] for kind in ("dropped", "changed") for each in stage[kind].values())
        assert stage["bytes_in"] - stage["bytes_out"] == told
    info = small_dataset.info
    assert stages[0]["dropped"]["not_text"] == {
        "documents": 1,
        "bytes": 6,
        "examples": [{"id": "code/picture.py", "excerpt": ""}],
    }
    assert stages[-1]["bytes_out"] == info["text_bytes"] == sum(s["text_bytes"] for s in info["splits"].values())
    assert info["tokens"] == sum(small_dataset.index(split).tokens for split in SPLITS)
    assert info["bytes_per_token"] == pytest.approx(info["text_bytes"] / info["tokens"], abs=1e-5)
    assert info["licences"] == {"code": "PSF-2.0"}


def test_every_document_ends_with_eos_and_has_no_other(small_dataset):
    eos = small_dataset.tokenizer().eos_id
    for split in SPLITS:
        index = small_dataset.index(split)
        for shard in index.shards:
            tokens = MappedShard(index.folder, shard, index.dtype).tokens(0, shard.tokens)
            assert tokens[-1] == eos
            assert (tokens == eos).sum() == shard.documents


def test_documents_are_shuffled_over_the_whole_split(small_dataset):
    ids = [row.id for row in small_dataset.rows("train")]
    assert len(small_dataset.index("train").shards) > 2
    ranks = np.argsort(np.argsort(ids))
    assert abs(np.corrcoef(ranks, np.arange(len(ids)))[0, 1]) < 0.4


def test_nothing_in_a_dataset_says_when_or_where_it_was_built(small_dataset, tmp_path):
    said = (small_dataset.folder / FILE).read_text()
    for word in (os.uname().nodename, "workers", "seconds", str(small_dataset.folder), time.strftime("%Y-%m")):
        assert word not in said


def test_the_same_recipe_and_input_are_not_built_again(small_recipe, small_dataset, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in small_dataset.folder.iterdir()}
    build(small_recipe.model_copy(update={"workers": 7}), small_dataset.folder, progress=Lines())
    assert "already built from this recipe and this input" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in small_dataset.folder.iterdir()} == before


def test_another_recipe_or_input_does_not_overwrite_a_dataset(made_folder, tmp_path):
    out = tmp_path / "out"
    build(folder_recipe(made_folder), out)
    before = digests(out)
    with pytest.raises(UserError, match=r"another recipe:\n  seed: 0 there, 1 now\n  split.valid: 0.2 there, 0.3 now"):
        build(folder_recipe(made_folder, seed=1, split=Split(valid=0.3)), out)
    (made_folder / "00.txt").write_text("other words")
    with pytest.raises(UserError, match=r"other input:\n  made\.bytes: \d+ there, \d+ now\n  made\.xxh3"):
        build(folder_recipe(made_folder), out)
    assert digests(out) == before


def test_a_killed_build_leaves_no_dataset_and_the_next_one_is_as_if_nothing_happened(made_folder, tmp_path):
    clean = digests(build(folder_recipe(made_folder), tmp_path / "clean").folder)
    out = tmp_path / "killed"
    script = (
        "import sys, time; from pathlib import Path; import data.pipeline as p; from data.build import build;"
        "from data.settings import load; from data.recipe import DatasetRecipe;"
        "p.write_index = lambda *given: (print('now', flush=True), time.sleep(60));"
        "build(load(DatasetRecipe, Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    from data.settings import dump

    (tmp_path / "recipe.yaml").write_text(dump(folder_recipe(made_folder)))
    argv = [sys.executable, "-c", script, str(tmp_path / "recipe.yaml"), str(out)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        with pytest.raises(UserError, match=r"another build \(process \d+ on .+\) is writing to"):
            build(folder_recipe(made_folder), out)
        child.send_signal(signal.SIGKILL)
    assert list((out / workplace.BUILDING).rglob("*.tar"))
    with pytest.raises(UserError, match="incomplete: its build was interrupted"):
        load_dataset(out)
    assert digests(build(folder_recipe(made_folder), out).folder) == clean


def test_a_build_killed_while_files_move_to_their_names_is_cleared_by_the_next(made_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    clean = digests(build(folder_recipe(made_folder), tmp_path / "clean").folder)

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("data.build.write_json", stop)
        build(folder_recipe(made_folder), out)
    assert (out / "train-000000.tar").exists()
    with pytest.raises(UserError, match="incomplete"):
        load_dataset(out)
    (out / "train-000777.tar").write_text("left by an older build")
    assert digests(build(folder_recipe(made_folder), out).folder) == clean


def test_a_folder_that_holds_something_else_is_left_alone(made_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and not a dataset: it holds 'thesis\.txt'"):
        build(folder_recipe(made_folder), tmp_path / "mine")
    with pytest.raises(UserError, match="is a file; a dataset is a folder"):
        build(folder_recipe(made_folder), tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["tokenizer.json", "train-000000.tar", "links", "sort-notes", ".mine.tmp"])
def test_a_file_that_is_called_as_a_build_would_call_it_is_left_alone(made_folder, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("years of work")
    with pytest.raises(UserError, match="not empty and not a dataset"):
        build(folder_recipe(made_folder), out)
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "years of work"


def test_a_dataset_that_another_build_finished_meanwhile_is_left_alone(made_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = digests(build(folder_recipe(made_folder), out).folder)
    monkeypatch.setattr("data.build._existing", lambda *given: None)  # it wasn't there yet
    with pytest.raises(UserError, match="another build has just finished"):
        build(folder_recipe(made_folder, seed=1), out)
    assert digests(out) == before


def test_a_file_that_changes_while_it_is_read_ends_the_build(made_folder, tmp_path, monkeypatch):
    def read(pipeline):
        rows = reading(pipeline)
        (made_folder / "00.txt").write_text("other words")
        return rows

    reading = Pipeline.read
    monkeypatch.setattr(Pipeline, "read", read)
    with pytest.raises(UserError, match=r"made/00\.txt changed while the build read it"):
        build(folder_recipe(made_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_corpus_says_what_became_of_it(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("")
    (folder / "b.txt").write_text("short")
    (folder / "c.txt").write_bytes(b"\0\1")
    with pytest.raises(UserError) as caught:
        build(folder_recipe(folder), tmp_path / "out")
    for part in ("no document is left", "too_short", "made/a.txt", "made/b.txt: short", "not_text", "made/c.txt"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"source none\.jsonl: there is no document in"):
        build(folder_recipe(folder, sources=(Source(kind="jsonl", path=tmp_path / "none.jsonl"),)), tmp_path / "out")


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text(english(0, 50))
    with pytest.raises(UserError, match="left none of the 1 documents for train"):
        build(
            folder_recipe(
                tmp_path,
                split=Split(heldout=0.999, valid=0.0),
                sources=(Source(kind="text", path=tmp_path / "one.txt"),),
            ),
            tmp_path / "out",
        )


def test_copies_are_dropped_before_the_split_so_none_leaks_across_it(made_folder, tmp_path):
    for number in range(40):
        text = (made_folder / f"{number:02d}.txt").read_text()
        (made_folder / f"x{number:02d}.txt").write_text(text if number % 2 else text + "\nand a last line.")
    dataset = build(folder_recipe(made_folder), tmp_path / "out")
    stages = {stage["name"]: stage["dropped"] for stage in dataset.info["stages"]}
    assert stages["exact_dedup"]["exact_copy"]["documents"] == 20
    assert stages["near_dedup"]["near_copy"]["documents"] == 20
    assert not any(row.id.startswith("made/x") for split in SPLITS for row in dataset.rows(split))


def test_the_split_of_a_document_does_not_depend_on_the_others(made_folder, tmp_path):
    first = build(folder_recipe(made_folder), tmp_path / "first")
    before = {row.id: split for split in SPLITS for row in first.rows(split)}
    for number in range(20):
        (made_folder / f"{number:02d}.txt").unlink()
    second = build(folder_recipe(made_folder), tmp_path / "second")
    after = {row.id: split for split in SPLITS for row in second.rows(split)}
    assert after == {id_: split for id_, split in before.items() if id_ in after}
    assert set(after.values()) == {"train", "valid"}
    other = build(folder_recipe(made_folder, seed=1), tmp_path / "third")
    assert {row.id: split for split in SPLITS for row in other.rows(split)} != after


@pytest.fixture(scope="module")
def docstrings(small_dataset, tmp_path_factory):
    recipe = DatasetRecipe(
        name="docstrings",
        kind="examples",
        sources=(Source(kind="dataset", path=small_dataset.folder, split="heldout"),),
        split=Split(valid=0.2, heldout=0.2),
        tokenizer=TokenizerTraining(reuse=small_dataset.folder),
        task=Task(max_tokens=300, min_completion_characters=10),
        workers=1,
    )
    return build(recipe, tmp_path_factory.mktemp("examples") / "docstrings")


def test_examples_come_from_documents_that_pretraining_never_saw(docstrings, small_dataset):
    heldout = {row.id for row in small_dataset.rows("heldout")}
    trained = {row.id for row in small_dataset.rows("train")}
    origins = {split: {row.id.split("#")[0] for row in docstrings.rows(split)} for split in SPLITS}
    assert all(held <= heldout and not held & trained for held in origins.values())
    assert not origins["train"] & (origins["valid"] | origins["heldout"])
    assert all(origins.values())
    assert docstrings.tokenizer().fingerprint == small_dataset.tokenizer().fingerprint
    assert {row.source for row in docstrings.rows("train")} == {"code"}


def test_the_loss_of_an_example_is_on_its_completion_and_eos_alone(docstrings):
    tokenizer = docstrings.tokenizer()
    marker = tokenizer.piece_id("<|completion|>")
    index = docstrings.index("train")
    assert index.kind == docstrings.kind == "examples"
    for row in docstrings.rows("train"):
        shard = MappedShard(index.folder, index.shards[row.shard], index.dtype)
        tokens = shard.tokens(row.start, row.start + row.tokens)
        uses = shard.uses(row.start, row.start + row.tokens)
        (at,) = np.flatnonzero(tokens == marker)
        assert not uses[: at + 1].any()
        assert (uses[at + 1 :] == IN_LOSS | 1 << 1).all()
        assert tokens[-1] == tokenizer.eos_id
        assert row.tokens <= 300
        assert "def " in tokenizer.decode(tokens[:at])
    assert docstrings.info["stages"][-1]["dropped"]["example_too_long"]["documents"] > 0


def test_prompts_and_completions_are_made_from_json_lines(tmp_path, small_dataset):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"q": f"{english(n, 9)}?", "a": f"answer {n}"} for n in range(50)]
    path.write_text("\n".join(json.dumps(pair) for pair in [*pairs, {"q": " ", "a": "x"}, {"q": "why", "a": "\0"}]))
    recipe = folder_recipe(
        tmp_path,
        kind="examples",
        sources=(Source(kind="jsonl", path=path, columns={"prompt": "q", "completion": "a"}),),
        task=Task(kind="prompt_completion", on_bad_row="drop"),
        tokenizer=TokenizerTraining(reuse=small_dataset.folder / "tokenizer.model"),
    )
    dataset = build(recipe, tmp_path / "out")
    got = {
        dataset.tokenizer().decode(tokens, control=True) for split in SPLITS for _, tokens in dataset.documents(split)
    }
    assert got == {f"{pair['q']}<|completion|>{pair['a']}<|eos|>" for pair in pairs}
    stages = {stage["name"]: stage["dropped"] for stage in dataset.info["stages"]}
    assert {rule: held["documents"] for rule, held in stages["examples"].items()} == {
        "bad_completion": 1,
        "empty_prompt": 1,
    }


def test_a_dataset_of_text_can_be_made_from_a_split_of_another(small_dataset, tmp_path):
    recipe = folder_recipe(
        tmp_path,
        sources=(Source(kind="dataset", path=small_dataset.folder, split="train"),),
        tokenizer=TokenizerTraining(reuse=small_dataset.folder),
    )
    dataset = build(recipe, tmp_path / "out")
    assert texts(dataset, "train") | texts(dataset, "valid") == texts(small_dataset, "train")


def test_a_tokenizer_that_cannot_be_taken_ends_the_build_before_anything_is_cleaned(tmp_path, made_folder):
    said: list[str] = []

    class Listening(Silent):
        def begin(self, stage, total, unit):
            said.append(stage)

    recipe = folder_recipe(made_folder, tokenizer=TokenizerTraining(reuse=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*nowhere"):
        build(recipe, tmp_path / "out", progress=Listening())
    assert not said
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_at_the_same_place_is_other_input(tmp_path, made_folder, small_dataset):
    taken = tmp_path / "taken"
    small_dataset.tokenizer().save(taken)
    recipe = folder_recipe(made_folder, tokenizer=TokenizerTraining(reuse=taken))
    build(recipe, tmp_path / "out")
    train((english(n, 60) for n in range(40)), 512).save(taken)
    with pytest.raises(UserError, match=r"other input:\n  reused tokenizer:"):
        build(recipe, tmp_path / "out")


def test_examples_are_no_source_of_documents(docstrings, tmp_path):
    source = Source(kind="dataset", path=docstrings.folder)
    with pytest.raises(UserError, match="holds examples; only a dataset of text is a source"):
        build(folder_recipe(tmp_path, sources=(source,)), tmp_path / "out")


def test_two_sources_with_the_same_documents_are_refused(small_dataset, tmp_path):
    twice = Source(kind="dataset", path=small_dataset.folder)
    with pytest.raises(UserError, match=r"two documents have the id 'code/"):
        build(folder_recipe(tmp_path, sources=(twice, twice)), tmp_path / "twice")


def test_the_tokenizer_learns_from_the_train_split_only(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(english(number, 80) + f"\n{'xyzzy' + chr(97 + number % 26)} " * 40)
    rules = Clean(max_repeated_lines=None)
    dataset = build(folder_recipe(folder, split=Split(valid=0.4), clean=rules), tmp_path / "out")
    learned = build(folder_recipe(folder, split=Split(valid=0.0), clean=rules), tmp_path / "all")
    assert dataset.tokenizer().fingerprint != learned.tokenizer().fingerprint
    only = tmp_path / "train"
    only.mkdir()
    for row in dataset.rows("train"):
        (only / row.id.split("/")[1]).write_text((folder / row.id.split("/")[1]).read_text())
    alone = build(folder_recipe(only, split=Split(valid=0.0), clean=rules), tmp_path / "alone")
    assert alone.tokenizer().fingerprint == dataset.tokenizer().fingerprint


def test_training_the_tokenizer_alone_gives_the_one_that_the_build_has(small_recipe, small_dataset, tmp_path):
    tokenizer = train_tokenizer(small_recipe, tmp_path / "tokenizer")
    assert tokenizer.content == small_dataset.tokenizer().content
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    with pytest.raises(UserError, match="is a dataset, which has its tokenizer"):
        train_tokenizer(small_recipe, small_dataset.folder)


def test_a_tokenizer_sample_is_bounded(small_recipe, small_dataset, tmp_path):
    settings = TokenizerTraining(vocab_size=1024, sample_bytes=60_000)
    made = train_tokenizer(small_recipe.model_copy(update={"tokenizer": settings}), tmp_path / "tokenizer")
    assert made.fingerprint != small_dataset.tokenizer().fingerprint
    tiny = small_recipe.model_copy(update={"tokenizer": TokenizerTraining(vocab_size=1024, sample_bytes=100)})
    assert train_tokenizer(tiny, tmp_path / "tiny").vocab_size < 700
