"""Cleaning: MB/s of a core by preset, and the rules of Gopher beside datatrove's, in speed and in verdicts.

`python -m tests.bench.clean [PYTHON]`: PYTHON is an interpreter where datatrove is installed (`pip install datatrove
spacy nltk` in an environment of its own); without one only our side is printed. Both sides take the same documents,
one process each. CPU seconds count, so that other work on the machine matters less.
"""

import json
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from data.clean.document import clean
from data.clean.measured import Measured
from data.clean.quality import RULES, broken
from data.clean.rules import PRESETS, Clean
from tests.corpora import texts
from tests.data.conftest import corpus_texts

SIZE, COMPARED = 8_000_000, 1_500_000
SETTINGS = (
    "min_words", "max_words", "mean_word_characters", "max_symbols", "max_bullets", "max_ellipses",
    "min_words_with_letters", "min_stop_words", "max_repeated_lines", "max_line_copies", "max_repeated_paragraphs",
    "max_paragraph_copies", "max_top_ngram", "max_copied_ngrams",
)  # fmt: skip
GOPHER = Clean.model_validate({"preset": "off"} | {setting: PRESETS["web"][setting] for setting in SETTINGS})
THEIRS = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
texts, quality, repetition = json.load(sys.stdin)
off = dict(min_doc_words=None, max_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
    max_symbol_word_ratio=None, max_bullet_lines_ratio=None, max_ellipsis_lines_ratio=None,
    max_non_alpha_words_ratio=None, min_stop_words=None)
none = dict(dup_line_frac=None, dup_para_frac=None, dup_line_char_frac=None, dup_para_char_frac=None,
    top_n_grams=(), dup_n_grams=())
every = [GopherQualityFilter(), GopherRepetitionFilter()]
alone = {name: GopherQualityFilter(**{**off, **given}) for name, given in quality.items()}
alone |= {name: GopherRepetitionFilter(**{**none, **given}) for name, given in repetition.items()}
documents = [Document(text, str(number)) for number, text in enumerate(texts)]
every[0].filter(documents[0])
began = time.process_time()
for document in documents:
    for each in every:
        each.filter(document)
seconds = time.process_time() - began
said = {name: [each.filter(document) is not True for document in documents] for name, each in alone.items()}
print(json.dumps([seconds, said]))
"""
QUALITY = {
    "few_words": {"min_doc_words": 50},
    "word_length": {"min_avg_word_length": 3, "max_avg_word_length": 10},
    "symbols": {"max_symbol_word_ratio": 0.1},
    "bullets": {"max_bullet_lines_ratio": 0.9},
    "ellipses": {"max_ellipsis_lines_ratio": 0.3},
    "not_words": {"max_non_alpha_words_ratio": 0.8},
    "few_stop_words": {"min_stop_words": 2},
}
REPETITION = {
    "repeated_lines": {"dup_line_char_frac": 0.2},
    "line_copies": {"dup_line_frac": 0.3},
    "repeated_paragraphs": {"dup_para_char_frac": 0.2},
    "paragraph_copies": {"dup_para_frac": 0.3},
    "top_ngram": {"top_n_grams": ((2, 0.2), (3, 0.18), (4, 0.16))},
    "copied_ngrams": {"dup_n_grams": ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))},
}
"""Our rules and the settings of the same ones in datatrove's two filters."""


def main() -> None:
    """Print both tables."""
    code = [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    corpora = {"English": texts(SIZE), "code": code}
    if chinese := corpus_texts("pretrain_zh_poetry/poetry.jsonl.gz", 4000):
        corpora["Chinese poems"] = chinese
        corpora["Chinese"] = ["\n\n".join(chinese[at : at + 40]) for at in range(0, len(chinese), 40)]
    for name, documents in corpora.items():
        size = sum(len(text.encode()) for text in documents)
        for preset in PRESETS:
            rules = Clean.model_validate({"preset": preset})
            clean(documents[0], rules)
            began = time.process_time()
            kept = sum(clean(text, rules).text is not None for text in documents)
            speed = size / (time.process_time() - began) / 1e6
            print(f"{name:14} {preset:8} {speed:7.1f} MB/s, {kept / len(documents):6.1%} of {len(documents)} kept")
    if len(sys.argv) > 1:
        compare(sys.argv[1], texts(COMPARED))


def compare(python: str, documents: list[str]) -> None:
    """The same documents through both implementations of Gopher's rules: speed of all, verdicts of each by itself."""
    size = sum(len(text.encode()) for text in documents)
    began = time.process_time()
    for text in documents:
        broken(Measured(text), GOPHER)
    ours = time.process_time() - began
    given = json.dumps([documents, QUALITY, REPETITION])
    ran = subprocess.run([python, "-c", THEIRS], input=given, stdout=subprocess.PIPE, text=True, check=True)
    theirs, said = json.loads(ran.stdout)
    print(
        f"Gopher's rules on {len(documents)} documents of {size / 1e6:.1f} MB: ours {size / ours / 1e6:.1f} MB/s, "
        f"datatrove {size / theirs / 1e6:.2f} MB/s, {theirs / ours:.0f}x"
    )
    rules = {rule.__name__: (rule, setting) for rule, setting in RULES}
    for name, verdicts in said.items():
        mine = [broken(Measured(text), GOPHER, (rules[name],)) is not None for text in documents]
        counts = Counter(zip(mine, verdicts, strict=True))
        same = (counts[True, True] + counts[False, False]) / len(documents)
        print(
            f"  {name:20} {same:6.1%} the same: both drop {counts[True, True]}, ours alone {counts[True, False]}, "
            f"datatrove alone {counts[False, True]}"
        )


if __name__ == "__main__":
    main()
