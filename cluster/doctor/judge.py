"""What is asked of the machines before they are trusted with a run, and how the answers are judged.

The answers are facts that probes wrote, one dict a rank (`probe.py`); every judgement is a pure function of them and of
what the recipe needs. `fail` is what would end or spoil the run, and refuses it as a preflight; `warn` is what makes it
slow or is worth a look, and refuses nothing, for a probe that shares its cores with others measures those, too.
"""

from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from typing import Any

from cluster.doctor import mutual_checks as mutual
from cluster.doctor import node_checks as node
from cluster.doctor.verdict import Check, Facts, Needs, Verdict
from trainer.models.head import LM, Head
from trainer.models.shapes import parameter_shapes
from trainer.recipe import Recipe
from trainer.units import printable

FORMAT, VERSION = "luban-doctor", 1
VOCABULARY = 1 << 15  # where the recipe leaves it to the tokenizer
STATE_BYTES = 12  # a parameter's fp32 weight and two moments in a checkpoint

CHECKS: tuple[Check, ...] = (
    mutual.check_ranks, mutual.check_versions, node.check_gpus, node.check_gpu_health, node.check_machines,
    node.check_disk, mutual.check_shared, mutual.check_clock, mutual.check_network, mutual.check_bandwidth,
    mutual.check_slow, mutual.check_wandb,
)  # fmt: skip
"""In the order in which they are shown."""


def needs(recipe: Recipe) -> Needs:
    """Of a recipe; the disk is for the checkpoints that are kept, the best, and the one being written."""
    launch, kept = recipe.launch, recipe.checkpoint.keep_last + recipe.checkpoint.keep_best + 1
    here = recipe.checkpoint.store_role == "mirror"
    head = LM
    if recipe.objective.kind == "adversarial":
        head = Head("adversarial", discriminator=recipe.objective.judge_of(recipe.model))
    shapes = parameter_shapes(recipe.model, recipe.model.vocab_size or VOCABULARY, head)
    parameters = sum(prod(shape) for shape in shapes.values())
    return Needs(
        ranks=launch.ranks,
        gpus_per_rank=launch.gpus_per_rank,
        threads=launch.threads,
        memory=launch.memory_gb * 1e9,
        disk=parameters * STATE_BYTES * kept if here else 0.0,
    )


def judge(facts: Sequence[Facts], needs: Needs) -> list[Verdict]:
    """Every verdict on a set of probes.

    Args:
        facts: of each rank that left any, in any order.
        needs: what the run would ask of them.
    """
    facts = sorted(facts, key=lambda each: each["rank"])
    if not facts:
        mend = "see the logs of the job and its ranks; if they ran elsewhere, the folder isn't shared with this machine"
        return [Verdict("ranks", "fail", f"no facts came from any of {needs.ranks} rank(s)", mend)]
    return [verdict for check in CHECKS for verdict in check(facts, needs)]


def failed(verdicts: Sequence[Verdict]) -> bool:
    """Whether the run must not begin."""
    return any(verdict.level == "fail" for verdict in verdicts)


def table(verdicts: Sequence[Verdict]) -> str:
    """As lines of text: check, verdict, what was found, and under it what to do."""
    wide = max(len(verdict.check) for verdict in verdicts)
    lines = []
    for verdict in verdicts:
        lines.append(f"{verdict.check:<{wide}}  {verdict.level:<4}  {printable(verdict.found)}")
        if verdict.mend:
            lines.append(f"{'':<{wide}}        -> {printable(verdict.mend)}")
    counts = [f"{sum(verdict.level == level for verdict in verdicts)} {level}" for level in ("ok", "warn", "fail")]
    return "\n".join([*lines, ", ".join(counts)])


def document(verdicts: Sequence[Verdict], facts: Sequence[Facts], seconds: float) -> dict[str, Any]:
    """For `--json`: the verdicts, and the facts that they came from."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "ok": not failed(verdicts),
        "seconds": round(seconds, 1),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "ranks": list(facts),
    }
