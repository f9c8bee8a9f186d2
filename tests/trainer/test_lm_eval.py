"""Tasks of lm-eval from local files, against figures made by hand from the model's own logits."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from data.errors import UserError
from tests.conftest import MODEL, CommandLine
from tests.trainer.families import scatter
from tests.trainer.lm_eval_tasks import DOCUMENTS, NEW_TOKENS, write_tasks
from tests.trainer.untrained import untrained
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.local_tasks import answered, evaluate_tasks, read_tasks
from trainer.scores import Loaded

CONTEXT = 64


@pytest.fixture(scope="module")
def loaded(luban: CommandLine) -> Loaded:
    """A decoder of random weights, far from uniform."""
    return untrained(luban.home / "datasets" / "tiny", MODEL, lambda model: scatter(model, 3))


def log_probabilities(loaded: Loaded, tokens: list[int]) -> list[float]:
    """Of each token after the first, given those before it."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    return [float(logits[place, token]) for place, token in enumerate(tokens[1:])]


def test_the_chosen_answers_are_those_of_the_highest_likelihood(loaded: Loaded, tmp_path: Path) -> None:
    results, cut = answered(loaded, read_tasks(str(write_tasks(tmp_path, "choice")), str(tmp_path / "cache")))
    encode, right = loaded.inputs.tokenizer.encode, []
    for document in DOCUMENTS:
        context, sums = f"Q: {document['question']}\nA:", []
        for choice in document["choices"]:
            whole = encode(f"{context} {choice}").tolist()
            sums.append(sum(log_probabilities(loaded, whole)[len(encode(context)) - 1 :]))
        right.append(int(np.argmax(sums)) == document["answer"])
    assert 0 < sum(right) < len(right)  # else every model would be as good
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(np.mean(right))
    assert (results["n-samples"]["local_choice"]["effective"], cut) == (3, 0)


def test_texts_are_what_generation_makes_up_to_what_ends_them(loaded: Loaded, tmp_path: Path) -> None:
    tokenizer = loaded.inputs.tokenizer
    prompts = [tokenizer.encode(document["question"]).tolist() for document in DOCUMENTS]
    made = generate(loaded.model, prompts, Decoding(NEW_TOKENS), eos_id=tokenizer.eos_id)
    texts = [tokenizer.decode(tokens) for (tokens,) in made]
    place = next(number for number, text in enumerate(texts) if len(text.strip()) > 3)
    stop = texts[place].strip()[2:]
    wanted = [text.split(stop)[0] for text in texts]
    assert wanted[place] != texts[place]
    folder = write_tasks(
        tmp_path, "text", generation_kwargs={"until": [stop], "max_gen_toks": NEW_TOKENS},
        doc_to_target="{{ {" + ", ".join(f"{d['question']!r}: {t!r}" for d, t in zip(DOCUMENTS, wanted, strict=True))
        + "}[question] }}",
    )  # fmt: skip
    results, _ = answered(loaded, read_tasks(str(folder), str(tmp_path / "cache")))
    assert results["results"]["local_text"]["exact_match,none"] == 1.0


def test_a_whole_text_is_asked_once_token_by_token_after_an_eos(loaded: Loaded, tmp_path: Path) -> None:
    results, _ = answered(loaded, read_tasks(str(write_tasks(tmp_path, "whole")), str(tmp_path / "cache")))
    total = size = 0.0
    lengths = []
    for document in DOCUMENTS:
        text = (document["question"] + " ") * 9
        tokens = [loaded.inputs.tokenizer.eos_id, *loaded.inputs.tokenizer.encode(text).tolist()]
        lengths.append(len(tokens))
        first = log_probabilities(loaded, tokens[: CONTEXT + 1])
        rest = len(tokens) - 1 - len(first)  # the last window begins so that it is full
        total += sum(first) + (sum(log_probabilities(loaded, tokens[-CONTEXT - 1 :])[-rest:]) if rest else 0.0)
        size += len(text.encode())
    assert max(lengths) > CONTEXT + 1
    bits = -total / size / math.log(2)
    assert results["results"]["local_whole"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


def test_inputs_beyond_the_context_lose_their_beginning_and_are_counted(loaded: Loaded, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, "choice", "text", doc_to_text="{{'many words ' * 60}}")
    _, cut = answered(loaded, read_tasks(str(folder), str(tmp_path / "cache")))
    assert cut == sum(len(document["choices"]) for document in DOCUMENTS) + len(DOCUMENTS)


def test_a_long_prompt_is_continued_from_its_end(loaded: Loaded) -> None:
    from trainer.harness import Harnessed

    text, tokenizer, room = " ".join(map(str, range(80))), loaded.inputs.tokenizer, CONTEXT - NEW_TOKENS
    (found,) = Harnessed(loaded).generate_until([SimpleNamespace(args=(text, {"max_gen_toks": NEW_TOKENS}))])
    tokens = tokenizer.encode(text).tolist()
    made = generate(loaded.model, [tokens[-room:], tokens[:room]], Decoding(NEW_TOKENS), eos_id=tokenizer.eos_id)
    end, beginning = (tokenizer.decode(one) for (one,) in made)
    assert found == end != beginning


def test_what_can_not_be_asked_is_refused_by_name(loaded: Loaded, tmp_path: Path) -> None:
    def reading(folder: Path, said: str) -> None:
        with pytest.raises(UserError, match=said):
            read_tasks(str(folder), str(tmp_path / "cache"))

    reading(tmp_path / "none", "there is no .*none: give a task's YAML file")
    reading(write_tasks(tmp_path / "hub", "choice", dataset_path="org/set"), "org/set would be fetched from a network")
    reading(write_tasks(tmp_path / "url", "choice", dataset_kwargs={"data_files": "https://x.y/z"}), "no data file")
    reading(write_tasks(tmp_path / "bare", "choice", dataset_kwargs={}), "needs dataset_kwargs.data_files")
    reading(write_tasks(tmp_path / "group", "choice", task=["a", "b"]), "is a group")
    reading(write_tasks(tmp_path / "twice", "choice", "text", task="same"), "two tasks called same")
    (tmp_path / "empty").mkdir()
    reading(tmp_path / "empty", "holds no task")
    (tmp_path / "empty" / "x.yaml").write_text("[1")
    reading(tmp_path / "empty", "x.yaml is no task of lm-eval")
    for name, asked, said in (
        ("long", {"max_gen_toks": 64}, "task local_text: it asks for 64 new tokens, and the model's context holds 64"),
        ("high", {"max_gen_toks": 4, "temperature": 1.0, "top_p": 2}, "task local_text: top_p must be above 0"),
        (
            "odd",
            {"max_gen_toks": 4, "penalty_alpha": 0.6},
            "task local_text: generation_kwargs.penalty_alpha is nothing",
        ),
    ):
        folder = write_tasks(tmp_path / name, "text", generation_kwargs=asked)
        with pytest.raises(UserError, match=said):
            answered(loaded, read_tasks(str(folder), str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_type": "loglikelyhood"}, "ValueError"),
        ({"doc_to_txt": "{{question}}"}, "TypeError.*doc_to_txt"),
        ({"test_split": "dev"}, "KeyError: 'dev'"),
        ({"doc_to_text": "{{ asked( }}"}, "TemplateSyntaxError"),
        ({"doc_to_target": "{{ choices[answers] }}"}, "UndefinedError"),
        ({"num_fewshot": 9}, "ValueError"),
        ({"metric_list": [{"metric": "nosuch"}]}, "lm-eval has no metric nosuch here: mend metric_list"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric bleu gives no figure with its output_type"),
    ],
)
def test_a_broken_task_is_refused_by_its_name(loaded: Loaded, tmp_path: Path, changes: dict, said: str) -> None:
    tasks = read_tasks(str(write_tasks(tmp_path, "choice", **changes)), str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"task local_choice: (lm-eval can't use it: .*)?{said}"):
        answered(loaded, tasks)


@pytest.mark.parametrize("data", ["", "{nonsense"])
def test_broken_data_are_refused_with_their_task_s_name(loaded: Loaded, tmp_path: Path, data: str) -> None:
    folder = write_tasks(tmp_path, "choice")
    (folder / "asked.jsonl").write_text(data)
    with pytest.raises(UserError, match="task local_choice: lm-eval can't use it: "):
        answered(loaded, read_tasks(str(folder), str(tmp_path / "cache")))


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")  # so that it is as before when the test is over
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"need lm-eval: pip install 'luban\[eval\]'"):
        evaluate_tasks("run", "tasks")


def test_an_included_file_is_no_task_of_its_own(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, "choice")
    task = yaml.safe_load((folder / "choice.yaml").read_text())
    (folder / "_base.yaml").write_text(yaml.safe_dump({name: held for name, held in task.items() if name != "task"}))
    (folder / "choice.yaml").write_text("include: _base.yaml\ntask: mine\n")
    (found,) = read_tasks(str(folder), "cache")
    assert (found["task"], found["output_type"]) == ("mine", "multiple_choice")
    assert found["dataset_kwargs"]["data_files"] == {"test": [str(folder / "asked.jsonl")]}


@pytest.mark.slow
def test_the_command_prints_each_task_s_figures(straight: CommandLine, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, "choice", "text")
    said = straight("evaluate", "straight", "--lm-eval", str(folder))
    assert "straight at step 24 on 2 tasks of" in said
    assert "local_choice  acc" in said and "local_text    exact_match" in said
