"""Local tasks of lm-eval for tests: three questions, asked in three ways."""

import json
from pathlib import Path
from typing import Any

import yaml

DOCUMENTS = (
    {"question": "What is kept?", "choices": ["a list of names", "the sea"], "answer": 0},
    {"question": "Who reads it?", "choices": ["the moon", "the reader of the book", "nobody"], "answer": 1},
    {"question": "Is it long?", "choices": ["yes", "no"], "answer": 1},
)
NEW_TOKENS = 6
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "text": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["ZZ"], "max_gen_toks": NEW_TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{(question + ' ') * 9}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def write_tasks(folder: Path, *names: str, **changes: Any) -> Path:
    """The tasks called so as YAML files with their data in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    for name in names:
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "asked.jsonl"}}, "test_split": "test"}
        task = {"task": f"local_{name}"} | data | TASKS[name] | changes
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder
