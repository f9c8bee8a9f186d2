"""Slurm's own commands, asked with patience, their refusals turned into messages.

What is read is text that has stood still for ten years (`squeue -o`, `sinfo -o`, `scontrol -o`); the JSON of the same
commands changes its shape with each release.
"""

import re
import subprocess
from collections.abc import Mapping

from data.errors import UserError

PATIENCE_S = 60.0  # a busy controller retries for some time before it answers
GONE = "Invalid job id"


class Unanswered(UserError):
    """Slurm's commands are missing, or its controller is out of reach."""


class Refused(UserError):
    """Slurm has answered no."""


def ask(*words: str, text: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's commands; returns what it prints.

    Args:
        text: its standard input.
        environment: None: this process's.

    Raises:
        Unanswered: it isn't installed, or the controller doesn't answer.
        Refused: it ended with an error; the message is its own.
    """
    try:
        done = subprocess.run(
            words, input=text or "", capture_output=True, text=True, timeout=PATIENCE_S, env=environment
        )
    except FileNotFoundError:
        raise Unanswered(
            f"there is no command {words[0]}: Slurm is not installed here, or not in PATH; go to a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unanswered(f"Slurm does not answer: {words[0]} has said nothing for {PATIENCE_S:g} s") from None
    if done.returncode:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or f"code {done.returncode}"
        down = re.search(r"(?i)unable to contact|connection (refused|timed out)|could not establish a config", said)
        raise (Unanswered if down else Refused)(f"Slurm {'does not answer' if down else 'says no'}: {said}")
    return done.stdout


def state(id: str) -> str | None:
    """What Slurm says of a job, in a word or two; None where it is over or forgotten. Raises UserError."""
    try:
        lines = ask("squeue", "--noheader", "--jobs", id, "--format", "%T|%r|%N").splitlines()
    except Refused as error:
        if GONE in str(error):
            return None
        raise
    if not lines:
        return None
    word, reason, nodes = lines[0].split("|", 2)
    if word == "PENDING":
        return f"queued ({reason})" if reason != "None" else "queued"  # not looked at yet
    return f"{word.lower()} on {nodes}" if nodes else word.lower()


def values(line: str) -> dict[str, str]:
    """`Name=value` words of a line of `scontrol show ... -o`; values with spaces are cut at the first."""
    return {name: value for name, _, value in (word.partition("=") for word in line.split()) if name}


def addresses(nodes: str) -> list[str]:
    """The NodeAddr of each node of a list such as n[1-2], in the order of the list; node names need not resolve."""
    names = ask("scontrol", "show", "hostnames", nodes).split()
    shown = [values(line) for line in ask("scontrol", "show", "node", nodes, "--oneliner").splitlines() if line.strip()]
    found = {node["NodeName"]: node["NodeAddr"] for node in shown}
    return [found[name] for name in names]
