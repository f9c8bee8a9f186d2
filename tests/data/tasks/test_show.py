"""What people are shown of examples and of a dataset's task."""

from collections import Counter

import numpy as np

from data.tasks.encode import Encoded, encode_examples, targets_of
from data.tasks.show import example_lines
from data.tasks.summary import added, counted, summary, task_lines
from data.tasks.task import Task
from tests.data.tasks.test_encode import MRPC, SST2


def test_an_example_is_shown_by_field_with_the_loss_and_the_target(tokenizer, examples_of):
    task = Task(kind="pair", labels={0: "other", 1: "same"})
    (example, *_) = examples_of(task, **MRPC)
    encoded = encode_examples([example], tokenizer, task, task.class_names)
    lines = example_lines(
        tokenizer, encoded.tokens[0], encoded.uses[0], targets_of(task), np.array(encoded.targets[0], np.int32),
        task.class_names, characters=1000,
    )  # fmt: skip
    held = dict(example.texts)
    assert [line.split()[0] for line in lines[:1]] == ["loss"]
    assert "<|cls|>" in lines[0]
    assert held["text_a"] in lines[1].replace("\\'", "'")
    assert held["text_b"] in lines[2].replace("\\'", "'")
    assert lines[-1] == f"target class {int(example.target)}: {('other', 'same')[int(example.target)]}"
    short = example_lines(tokenizer, encoded.tokens[0], encoded.uses[0], characters=10)
    assert "characters)" in short[1]


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
