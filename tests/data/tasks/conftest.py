"""Rows of the real corpora where the machine has them, else rows of the same form; a tokenizer that knows them."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from data import corpus
from data.recipe import Source
from data.tasks.make import make_examples
from data.tasks.task import Task
from data.tokenizer.training import train
from tests.data.conftest import CORPORA, chinese, english


def squad_json(name: str, text, question: str) -> dict:
    """Two articles of the form of SQuAD, made up: an answer a question, at its place."""
    data = []
    for article in range(6):
        paragraphs = []
        for number in range(4):
            context = text(100 * article + number)
            qas = []
            for place in range(3):
                begin = len(context) * (place + 1) // 5
                begin = next(at for at in range(begin, len(context)) if at == 0 or context[at - 1].isspace())
                end = begin + len(context[begin:].split()[0])
                answer = {"text": context[begin:end], "answer_start": begin}
                qas.append({"id": f"{name}{article}-{number}-{place}", "question": question, "answers": [answer]})
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"article {article}", "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory) -> Path:
    """sst2.tsv, mrpc.tsv.gz, chnsenticorp.csv, xquad.en.json, xquad.zh.json, multi30k.en.gz, multi30k.de.gz,
    en_zh.jsonl, dialogsum.jsonl, alpaca.json: the first rows of each."""
    folder = tmp_path_factory.mktemp("rows")

    def head(path: str, lines: int) -> str | None:
        file = CORPORA / path
        if not file.exists():
            return None
        with gzip.open(file, "rt", encoding="utf-8") if path.endswith(".gz") else file.open(encoding="utf-8") as text:
            return "".join(line for line, _ in zip(text, range(lines), strict=False))

    made_up = "".join(f"{english(n, 12)[:-1].replace(chr(10), ' ')}\t{n % 2}\n" for n in range(300))
    (folder / "sst2.tsv").write_text(head("sst2/train.tsv", 300) or made_up)
    pairs = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(
        f'{n % 2}\t{n}\t{n + 1}\tHe said "{english(n, 6)}\tShe said {english(n, 7)}\n'.replace(".\n", ".") + "\n"
        for n in range(60)
    )
    with gzip.open(folder / "mrpc.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(head("mrpc/msr_paraphrase_train.txt.gz", 200) or pairs)
    reviews = head("chnsenticorp/ChnSentiCorp_htl_all.csv", 300)
    if reviews is None:
        with (folder / "chnsenticorp.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "review"), *((n % 2, chinese(n, 40)) for n in range(200))])
    else:
        (folder / "chnsenticorp.csv").write_text(reviews)
    for language, text, question in (
        ("en", lambda seed: english(seed, 120), "What is it?"), ("zh", lambda seed: chinese(seed, 200), "是什么？"),
    ):  # fmt: skip
        file = CORPORA / "xquad" / f"xquad.{language}.json"
        said = json.loads(file.read_text()) if file.exists() else squad_json(language, text, question)
        said["data"] = said["data"][:8]
        (folder / f"xquad.{language}.json").write_text(json.dumps(said, ensure_ascii=False, indent=1))
    for language in ("en", "de"):
        with gzip.open(folder / f"multi30k.{language}.gz", "wt", encoding="utf-8") as file:
            lines = head(f"multi30k/train.{language}.gz", 200)
            file.write(lines or "".join(english(n, 8).replace("\n", " ") + "\n" for n in range(200)))
    segments = [{"en": english(n, 9), "zh": chinese(n, 18)} for n in range(100)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in segments)
    (folder / "en_zh.jsonl").write_text(head("libreoffice_en_zh/en_zh.jsonl.gz", 200) or lines)
    names = ("summary1", "summary2", "summary3")
    summaries = [{"dialogue": english(n, 60)} | {name: english(n, 9) for name in names} for n in range(40)]
    (folder / "dialogsum.jsonl").write_text(
        head("dialogsum/dialogsum.test.jsonl", 60) or "".join(json.dumps(row) + "\n" for row in summaries)
    )
    for language in ("en", "zh"):
        file = CORPORA / "alpaca_demo" / f"alpaca_{language}_demo.json"
        text = english if language == "en" else chinese
        orders = [{"instruction": text(n, 9), "input": "", "output": text(n, 30)} for n in range(60)]
        said = json.loads(file.read_text())[:60] if file.exists() else orders
        (folder / f"alpaca.{language}.json").write_text(json.dumps(said, ensure_ascii=False, indent=1))
    return folder


@pytest.fixture(scope="session")
def tokenizer(rows_folder):
    """2,048 pieces of the English and Chinese in these rows."""
    names = ("sst2.tsv", "chnsenticorp.csv", "xquad.en.json", "xquad.zh.json", "en_zh.jsonl", "alpaca.en.json")
    return train([(rows_folder / name).read_text()[:200_000] for name in names], 3072)


@pytest.fixture(scope="session")
def examples_of(rows_folder):
    """The good examples of a source (a path relative to the folder) under a task."""

    def made(task: Task, **source):
        for name in ("path",):
            if name in source:
                source[name] = rows_folder / source[name]
        if "files" in source:
            source["files"] = {name: rows_folder / path for name, path in source["files"].items()}
        found = []
        for document in corpus.documents([Source(**source)]):
            found += make_examples(document, task) or []
        return [example for example in found if example.fault is None]

    return made
