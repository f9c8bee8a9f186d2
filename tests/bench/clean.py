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
from data.clean.quality import broken
from data.clean.rules import PRESETS, Clean
from tests.corpora import texts
from tests.data.conftest import corpus_texts

SIZE, COMPARED = 8_000_000, 1_500_000
GOPHER = Clean(
    preset="off",
    **{
        setting: PRESETS["web"][setting]
        for setting in (
            "min_words", "max_words", "mean_word_characters", "max_symbols", "max_bullets", "max_ellipses",
            "min_words_with_letters", "min_stop_words", "max_repeated_lines", "max_line_copies",
            "max_repeated_paragraphs", "max_paragraph_copies", "max_top_ngram", "max_copied_ngrams",
        )
    },
)  # fmt: skip
THEIRS = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
texts = json.load(sys.stdin)
filters = [GopherQualityFilter(), GopherRepetitionFilter()]
said = []
for number, text in enumerate([texts[0], *texts]):
    if number == 1:
        began = time.process_time()
    faults = [result[1] for each in filters if (result := each.filter(Document(text, str(number)))) is not True]
    said.append(faults[0] if faults else None)
print(json.dumps([time.process_time() - began, said[1:]]))
"""


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
            rules = Clean(preset=preset)
            clean(documents[0], rules)
            began = time.process_time()
            kept = sum(clean(text, rules).text is not None for text in documents)
            speed = size / (time.process_time() - began) / 1e6
            print(f"{name:14} {preset:8} {speed:7.1f} MB/s, {kept / len(documents):6.1%} of {len(documents)} kept")
    if len(sys.argv) > 1:
        compare(sys.argv[1], texts(COMPARED))


def compare(python: str, documents: list[str]) -> None:
    """The same documents through both implementations of Gopher's rules."""
    size = sum(len(text.encode()) for text in documents)
    began = time.process_time()
    ours = [broken(Measured(text), GOPHER) for text in documents]
    speed = size / (time.process_time() - began) / 1e6
    ran = subprocess.run(
        [python, "-c", THEIRS], input=json.dumps(documents), stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, theirs = json.loads(ran.stdout)
    same = sum((a is None) == (b is None) for a, b in zip(ours, theirs, strict=True))
    print(
        f"Gopher's rules: ours {speed:.1f} MB/s, datatrove {size / seconds / 1e6:.2f} MB/s, {speed * seconds / size * 1e6:.0f}x"
    )
    print(f"the same verdict on {same} of {len(documents)} documents ({same / len(documents):.1%})")
    unlike = Counter((a, b) for a, b in zip(ours, theirs, strict=True) if (a is None) != (b is None))
    for (a, b), count in unlike.most_common(12):
        print(f"  {count:4} ours {a or 'kept':20} datatrove {b or 'kept'}")


if __name__ == "__main__":
    main()
