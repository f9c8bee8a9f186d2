"""What people are shown of examples and of a dataset's task."""

from collections import Counter

import numpy as np
import pytest

from data.shards import Targets
from data.tasks.encode import Encoded, encode_examples, targets_of
from data.tasks.show import target_text
from data.tasks.summary import added, counted, summary, task_lines
from data.tasks.task import Task
from tests.data.tasks.test_encode import SST2


@pytest.mark.parametrize(
    ("targets", "values", "classes", "text"),
    [
        (Targets(("label",), np.dtype("<i4")), [1], ("other", "same"), "class 1: same"),
        (Targets(("label",), np.dtype("<f4")), [2.5], (), "label 2.5"),
        (Targets(("start", "end"), np.dtype("<i4")), [0, 0], (), "start 0, end 0: no answer in this window"),
        (Targets(("start", "end"), np.dtype("<i4")), [0, 1], (), "start 0, end 1: 'it is'"),
    ],
)
def test_a_target_is_shown_in_words(tokenizer, targets, values, classes, text):
    tokens = np.concatenate([tokenizer.encode(word) for word in (" it", " is", " so")])
    assert all(len(tokenizer.encode(word)) == 1 for word in (" it", " is"))
    assert target_text(tokenizer, tokens, targets, np.array(values, targets.dtype), classes) == text


def test_counts_add_up_by_split_and_show_the_balance_of_classes(tokenizer, examples_of):
    task = Task(kind="classification", labels={0: "bad", 1: "good"}, max_tokens=24, truncate="text")
    examples = examples_of(task, **SST2)
    half = len(examples) // 2
    parts = []
    for part in (examples[:half], examples[half:]):
        splits = [1 if number % 10 == 0 else 0 for number in range(len(part))]
        parts.append(counted(encode_examples(part, tokenizer, task, task.class_names), splits))
    counts = added(parts)
    assert sum(counts[split]["examples"] for split in ("train", "valid")) == len(examples)
    said = summary(task, task.class_names, targets_of(task), tokenizer, counts)
    balance = Counter(example.target for example in examples)
    totals = Counter()
    for split in said["splits"].values():
        totals.update(split["classes"])
    assert totals == {"bad": balance["0"], "good": balance["1"]}
    assert said["controls"] == {role: tokenizer.piece_id(f"<|{role}|>") for role in ("cls", "sep")}
    assert said["splits"]["train"]["truncated"] > 0
    text = "\n".join(task_lines(said))
    assert "task classification, template encoder, 2 classes" in text
    assert "truncated" in text
    assert "%" in text


def test_examples_that_became_no_row_are_not_counted():
    assert counted(Encoded(faults={0: "example_too_long"}), [0]) == {}
