import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.build import build
from data.clean.rules import Clean
from data.decontaminate import collect, find
from data.ngrams import run_hashes, word_hashes
from data.recipe import DatasetRecipe, Decontaminate, Source, Split, TokenizerTraining
from data.shards import SPLITS
from tests.data.conftest import chinese, english

MEMORY = 10_000_000


def written(path, texts, **fields):
    path.write_text("\n".join(json.dumps({"text": text, **fields}, ensure_ascii=False) for text in texts))
    return Source(kind="jsonl", path=path, name=path.stem)


@pytest.fixture
def looking(tmp_path):
    def make(texts, memory=MEMORY, **rules):
        work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        work.mkdir()
        sets = (written(tmp_path / f"{work.name}.jsonl", texts),)
        looked = collect(Decontaminate(sets=sets, **rules), Clean(), work, memory)
        return work, looked[0]

    return make


def words(first, count):
    return [f"w{number}" for number in range(first, first + count)]


def test_thirteen_words_in_common_are_found_whatever_their_case_and_punctuation_and_twelve_are_not(looking):
    work, _ = looking([" ".join(words(0, 40))])
    before, after = " ".join(words(100, 50)), " ".join(words(200, 50))
    assert find(f"{before} {' '.join(words(5, 12))} {after}", work, 0) is None
    found = find(f"{before}\n{', '.join(words(5, 13)).upper()}! {after}", work, 0)
    assert found is not None
    assert found.text == ", ".join(words(5, 13)).upper()
    assert found.share == pytest.approx(13 / 113)


def test_short_evaluation_texts_are_looked_for_whole_and_shorter_ones_counted(looking):
    work, looked = looking([" ".join(words(0, 9)), " ".join(words(50, 7)), " ".join(words(70, 20))])
    assert (looked.texts, looked.too_short, looked.runs) == (3, 1, {13: 8, 9: 1})
    assert find(" ".join(["x", *words(0, 9), "y"]), work, 0) is not None
    assert find(" ".join(["x", *words(0, 8), "y"]), work, 0) is None
    assert find(" ".join(["x", *words(50, 7), "y"]), work, 0) is None


def test_overlap_asks_for_a_share_of_the_documents_words(looking):
    work, _ = looking([" ".join(words(0, 20))])
    document = " ".join([*words(0, 20), *words(100, 60)])
    assert find(document, work, 0.24) is not None
    assert find(document, work, 0.26) is None


def test_punctuation_of_chinese_and_white_space_hide_nothing(looking):
    text = chinese(1, 60)
    work, _ = looking([text])
    assert find("前文" + text.replace("。", "、\u3000") + "后文", work, 0.9) is not None
    assert len(word_hashes("「我们」、今天。〇々カー・ン\u3000")) == len("我们今天〇々カーン")


def test_chinese_characters_are_words(looking):
    text = chinese(1, 200)
    work, _ = looking([text])
    assert find(chinese(2, 100) + text[40:60] + chinese(3, 100), work, 0) is not None
    assert find(chinese(2, 300), work, 0) is None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), min_size=4, max_size=12), min_size=1, max_size=6), data=st.data()
)
def test_what_is_found_is_what_comparing_all_runs_finds(looking, texts, data):
    work, _ = looking([" ".join(text) for text in texts], ngram=4)
    document = data.draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=20))
    runs = {tuple(text[at : at + 4]) for text in texts for at in range(len(text) - 3)}
    shared = {at + more for at in range(len(document) - 3) if tuple(document[at : at + 4]) in runs for more in range(4)}
    found = find(" ".join(document), work, 0)
    assert (found.share if found else 0) == pytest.approx(len(shared) / len(document))


def test_runs_are_told_apart_by_the_order_of_their_words():
    assert len(run_hashes(word_hashes("a b c"), 4)) == 0
    assert run_hashes(word_hashes("a b c"), 3) != run_hashes(word_hashes("c b a"), 3)
    assert np.array_equal(run_hashes(word_hashes("x a b c"), 3)[1:], run_hashes(word_hashes("A b, c"), 3))


def test_the_runs_of_a_set_are_the_same_in_little_memory(looking):
    texts = [english(seed, 3000) for seed in range(8)]
    tight, roomy = looking(texts, memory=20_000)[0], looking(texts)[0]
    held = [next(work.glob("*.runs")).read_bytes() for work in (tight, roomy)]
    assert held[0] == held[1]
    assert (np.diff(np.frombuffer(held[0], np.uint64).astype(object)) > 0).all()


def test_a_build_drops_what_evaluation_sets_hold_and_says_which_and_how_many(tmp_path):
    questions = [" ".join(english(1000 + number, 40).split()) for number in range(6)]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        text = english(number, 200)
        (folder / f"{number:02d}.txt").write_text(f"{text}\n{questions[number]}\n" if number < 6 else text)
    recipe = DatasetRecipe(
        name="clean",
        sources=(Source(kind="folder", path=folder, name="made"),),
        decontaminate=Decontaminate(
            sets=(written(tmp_path / "quiz.jsonl", questions[:4]), written(tmp_path / "exam.jsonl", questions[3:]))
        ),
        split=Split(valid=0.2),
        tokenizer=TokenizerTraining(vocab_size=768),
        workers=1,
    )
    dataset = build(recipe, tmp_path / "out")
    kept = {row.id for split in SPLITS for row in dataset.rows(split)}
    assert kept == {f"made/{number:02d}.txt" for number in range(6, 30)}
    (stage,) = [stage for stage in dataset.info["stages"] if stage["name"] == "decontaminate"]
    assert {rule: held["documents"] for rule, held in stage["dropped"].items()} == {"in_exam": 2, "in_quiz": 4}
    (shown, *_) = stage["dropped"]["in_exam"]["examples"]
    assert shown["excerpt"].split()[:9] == questions[int(shown["id"][5:7])].split()[:9]
    assert stage["documents_in"] - stage["documents_out"] == 6
    assert dataset.info["decontaminated"]["quiz"]["texts"] == 4
    assert "without exam" in dataset.info["input"]


def test_two_evaluation_sets_of_one_name_are_refused(tmp_path):
    same = written(tmp_path / "quiz.jsonl", ["x"])
    with pytest.raises(ValidationError, match="two evaluation sets are called 'quiz'"):
        Decontaminate(sets=(same, same))
