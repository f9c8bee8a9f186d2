"""Ours against HF Trainer: one seed, the same weights, batches, rates and updates; every loss, and a step's time.

Two fine-tunings of 200 updates. "bert": SST-2's sentences on the real BERT of `tests.bench.tasks`, whose new head is
drawn once for both. "gpt2": text on what `luban export` made of a small GPT-2 after 40 updates. Dropout is 0: the two
draw it from different generators. Trainer gets our learning rates (its own first update has rate 0) and our choice of
what decays (its own decays embeddings, too); clipping, betas and epsilon are set alike, and all else is as each ships.
One rank, one thread, fp32; ours is the loop of a real run, in a real rank.

Each is a process of its own. They take turns of a few steps, and only steps are timed, reading rows included.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.ports import free_port
from data import settings
from tests.bench.loader_corpus import CORPORA
from tests.bench.tasks import TASKS, build, luban, minilm, place
from tests.bench.turns import Turns, take_turns
from trainer import record
from trainer.ancestor import with_ancestor
from trainer.recipe import Recipe
from trainer.run import open_run

UPDATES, CLOSE = 200, 1e-3
SETTINGS = (
    "optimizer.weight_decay=0.01", "optimizer.betas=[0.9,0.999]", "schedule.kind=linear",
    "schedule.warmup_steps=20", "schedule.final_ratio=0", "model.residual_dropout=0", "model.attention_dropout=0",
    "evaluate.every_steps=0", "checkpoint.every_steps=0", "checkpoint.every_minutes=0", "log.wandb=off",
)  # fmt: skip
CASES = {
    "bert": ("sst2", ("train.batch_rows=16", "optimizer.lr=1e-4")),
    "gpt2": ("parity-text", ("train.batch_rows=8", "optimizer.lr=1e-3", "model.attention=full")),
}
"""Dataset and settings of each."""
BEGUN = "parity-begun"
HEAD = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

set_seed(1)
AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def beginning(name: str, folder: Path) -> Path:
    """The Hugging Face directory that both start from; makes the dataset, too."""
    start = folder / "start"
    if name == "bert":
        build(next(task for task in TASKS if task.name == "sst2"))
        subprocess.run([sys.executable, "-c", HEAD, minilm(), start], check=True, capture_output=True)
        return start
    dataset = place() / "datasets" / CASES[name][0]
    if not (dataset / "dataset.json").exists():
        source = f"{{kind: jsonl, path: '{CORPORA}/pretrain_en_tech/en_tech.jsonl.gz'}}"
        luban("data", "build", f"name={dataset.name}", f"sources=[{source}]", "tokenizer.vocab_size=4096")
    sizes = ("model.family=gpt2", "model.preset=tiny", *CASES[name][1])
    luban("pretrain", "own", f"name={BEGUN}", f"data.dataset={dataset}", *SETTINGS, *sizes, "train.steps=40")
    luban("export", BEGUN, str(start))
    return start


def opened(name: str, given: list[str], start: Path, run: Path) -> None:
    """Write the run's folder, as `luban finetune --from` does."""
    dataset, more = CASES[name]
    given = [
        f"train.steps={UPDATES}",
        *SETTINGS,
        *more,
        *given,
        f"name={run.name}",
        f"data.dataset={place() / 'datasets' / dataset}",
    ]
    recipe = settings.load(Recipe, None, given)
    open_run(with_ancestor(recipe, run, str(start), {item.partition("=")[0] for item in given}), run)


def ours(run: Path, out: Path, turns: Turns) -> None:
    """The rank of a run, which takes turns after its updates."""
    from trainer import loop
    from trainer.__main__ import main as rank

    class TakingTurns(loop.Loop):
        def updates(self) -> tuple[str, str]:
            turns.begin()
            return super().updates()

        def after_update(self, agreed: loop.Agreed) -> None:
            super().after_update(agreed)
            turns.stepped(last=self.s.progress.step == self.until)

    loop.Loop = TakingTurns
    sys.argv = ["trainer", str(run)]
    code = rank()
    events = [event for attempt in record.load(run).attempts for event in attempt.of("step")]
    out.write_text(json.dumps({"losses": [event["loss"] for event in events], "seconds": turns.seconds}))
    os._exit(code)


def contend(name: str, given: list[str], folder: Path) -> tuple[dict[str, list], dict[str, list]]:
    """Losses and seconds of ours and of HF Trainer's."""
    start, run = beginning(name, folder), folder / "run"
    opened(name, given, start, run)
    outs = [folder / f"{side}.json" for side in ("ours", "theirs")]
    port = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{free_port()}",
    }
    mine = [sys.executable, "-m", "tests.bench.trainer_parity", "ours", run, outs[0]]
    theirs = [sys.executable, "-m", "tests.bench.trainer_parity_hf", run, start, outs[1]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    take_turns([mine, theirs], [environment | port, environment], [out.with_suffix(".log") for out in outs])
    return tuple(json.loads(out.read_text()) for out in outs)  # pyright: ignore[reportReturnType]


def compare(name: str, mine: dict[str, list], theirs: dict[str, list]) -> bool:
    """Print the losses' largest difference and the medians of both times; whether the losses are close."""
    apart = [abs(a - b) for a, b in zip(mine["losses"], theirs["losses"], strict=True)]
    print(
        f"{name}: {len(apart)} losses from {mine['losses'][0]:.4f} to {statistics.mean(mine['losses'][-10:]):.4f} "
        f"(mean of the last 10); largest difference {max(apart):.1e} at update {apart.index(max(apart)) + 1}, median "
        f"{statistics.median(apart):.1e}"
    )
    for kind, clock in enumerate(("wall-clock", "processor time")):
        a, b = ([1000 * step[kind] for step in each["seconds"][1:]] for each in (mine, theirs))
        print(
            f"  a step, {clock}, median (and mean): ours {statistics.median(a):.0f} ({statistics.mean(a):.0f}) ms, HF "
            f"Trainer {statistics.median(b):.0f} ({statistics.mean(b):.0f}) ms: "
            f"{statistics.median(b) / statistics.median(a):.2f}x ({statistics.mean(b) / statistics.mean(a):.2f}x)",
            flush=True,
        )
    return max(apart) <= CLOSE


def main(words: list[str]) -> None:
    """Contend in the cases that `words` name, or in all; words with a = are settings, such as train.steps=60."""
    if not (CORPORA / "sst2").is_dir():
        raise SystemExit(f"no corpora in {CORPORA}: set LUBAN_CORPORA to where they lie")
    apart, given = [], [word for word in words if "=" in word]
    for name in [word for word in words if "=" not in word] or CASES:
        with tempfile.TemporaryDirectory(prefix="luban-parity-") as folder:
            if not compare(name, *contend(name, given, Path(folder))):
                apart.append(name)
    if apart:
        raise SystemExit(f"losses further apart than {CLOSE}: {', '.join(apart)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]), Path(sys.argv[3]), Turns(int(sys.argv[4]), int(sys.argv[5])))
    main(sys.argv[1:])
