"""The doctor's visit: probes started as any job is, their facts brought together and judged.

The probes' folder is a new one beside the runs, `runs/.doctor-...`, so that what is found of it (room, speed, shared or
not) is true of them. It is removed afterwards, unless ranks fell or were not heard of: then their logs are in it.
"""

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster import submission
from cluster.doctor.judge import failed, judge, needs
from cluster.doctor.probe import FACTS, FORMAT, VERSION
from cluster.doctor.verdict import Facts, Verdict
from cluster.hold import hold
from cluster.job import STOPPED, Job, Launcher
from cluster.launchers import scheduler
from cluster.on_local import Local, LocalRanks
from cluster.supervisor import Supervisor
from data import settings
from data.errors import UserError
from trainer.recipe import Recipe
from trainer.run import FILE, home
from trainer.tracker import chosen_mode

PATIENCE_S = 120.0  # ranks of one job begin minutes apart on a busy cluster, when each unpacks its environment
MOST_MINUTES = 15
ASK_S = 2.0  # between two questions to a scheduler
END_S = 30.0  # for a job to be over whose ranks are through

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkup:
    """What came of a visit."""

    verdicts: list[Verdict]
    facts: list[Facts]
    seconds: float


def examine(recipe: Recipe, chosen: Launcher, on: str, say: Say, quick: bool = False) -> Checkup:
    """Look at the machines on which `chosen` would run a recipe.

    Args:
        on: the launcher, as `--on` names it.
        say: is told what goes on meanwhile.
        quick: leave out how fast the ranks compute and talk.

    Raises:
        KeyboardInterrupt: it was interrupted; what was submitted is called off.
    """
    began = time.monotonic()
    name, folder = on.partition("=")[0], home().absolute() / "runs" / f".doctor-{secrets.token_hex(4)}"
    job = probe_job(folder, recipe, quick)
    verdicts: list[Verdict] = []
    facts: list[Facts] = []

    def finish() -> Checkup:
        if any(verdict.check == "ranks" and verdict.level == "fail" for verdict in verdicts) and folder.is_dir():
            say(f"the ranks' logs are kept in {folder}/logs")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # where nothing else is in it
        return Checkup(verdicts, facts, time.monotonic() - began)

    try:
        chosen.check(job)
        verdicts.append(Verdict(name, "ok", "this machine" if name == "local" else "answers, and has what is asked"))
    except UserError as error:
        verdicts.append(Verdict(name, "fail", str(error), "ask for what is there, or mend the scheduler"))
        return finish()
    try:
        folder.mkdir(parents=True)
        (folder / FILE).write_text(settings.dump(recipe))  # a scheduler's job reads there how large it is
    except OSError as error:
        mend = "make it writable for this user, or set LUBAN_HOME to a folder that is"
        verdicts.append(Verdict("disk", "fail", f"cannot make {folder}: {error.strerror or error}", mend))
        return finish()
    try:
        _run(job, chosen, on, say)
        facts.extend(collect(folder))
    except UserError as error:
        verdicts.append(Verdict("ranks", "fail", str(error), "see the ranks' logs, and whether there is room for them"))
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if facts or not failed(verdicts):
        verdicts.extend(judge(facts, needs(recipe)))
    return finish()


def preflight(recipe: Recipe, chosen: Launcher, on: str, say: Say) -> None:
    """A quick visit before a run. Raises UserError where something would end or spoil it, with every such thing."""
    found = examine(recipe, chosen, on, say, quick=True)
    bad = [verdict for verdict in found.verdicts if verdict.level == "fail"]
    if bad:
        lines = [f"  {verdict.check}: {verdict.found}\n    -> {verdict.mend}" for verdict in bad]
        raise UserError(
            "the preflight found what would end or spoil the run, and nothing was started:\n" + "\n".join(lines) + "\n"
            "launch.preflight=false starts without it"
        )
    worth = [f"{verdict.check}: {verdict.found}" for verdict in found.verdicts if verdict.level == "warn"]
    say(f"preflight: {len(found.verdicts) - len(worth)} checks ok in {found.seconds:.1f} s")
    for line in worth:
        say(f"preflight: worth a look: {line}")


def probe_job(folder: Path, recipe: Recipe, quick: bool) -> Job:
    """The job of probing, with as many ranks in the same places as the recipe's own would have."""
    launch = recipe.launch
    words = ["--patience", f"{PATIENCE_S:g}", "--wandb", chosen_mode(recipe.log.wandb, os.environ)]
    return Job(
        argv=(sys.executable, "-P", "-m", "cluster.doctor.probe", str(folder), *words, *(["--quick"] if quick else [])),
        run=folder,
        steps=1,
        nodes=launch.nodes,
        ranks_per_node=launch.ranks // launch.nodes,
        min_ranks=launch.ranks,
        cpus_per_rank=launch.threads,
        gpus_per_rank=launch.gpus_per_rank,
        memory_gb=launch.memory_gb,
        time_limit_minutes=min(launch.time_limit_minutes or MOST_MINUTES, MOST_MINUTES),
        environment=(("OMP_NUM_THREADS", str(launch.threads)),),
        max_restarts=0,
        last_s=PATIENCE_S + 30.0,
        recorded=False,
    )


def collect(folder: Path) -> list[Facts]:
    """The facts that lie in a folder, in the order of ranks.

    Raises:
        UserError: a file there is of another version.
    """
    found = []
    for path in (folder / FACTS).glob("rank-*.json"):
        facts = json.loads(path.read_text())
        if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
            raise UserError(f"{path} was written by another Luban than this one: install the same on all nodes")
        found.append(facts)
    return sorted(found, key=lambda facts: facts["rank"])


class _Quiet:
    """Keeps what a supervisor says of the probes, and shows no progress: they take seconds."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def poll(self) -> None:
        """Nothing to look at."""

    def say(self, text: str, style: str = "") -> None:
        """First who fell, and why; what follows is of runs and their checkpoints."""
        self.said.append(text)

    def close(self) -> None:
        """Nothing to leave."""


def _run(job: Job, chosen: Launcher, on: str, say: Say) -> None:
    """See the probes to their end. Raises UserError where they can't be started, KeyboardInterrupt where asked to."""
    with hold(job.run) as held:
        if isinstance(chosen, Local):
            quiet = _Quiet()
            code = Supervisor(job, held, LocalRanks(job), quiet).run()
            for text in quiet.said[: code != STOPPED]:
                say(text)
        else:
            with redirect_stdout(sys.stderr):  # what a launcher shows of a job is no part of the answer
                code = chosen.submit(job, held)
    if code == STOPPED:
        raise KeyboardInterrupt
    handed = submission.read(job.run)
    if handed:
        _wait(handed, job, on, say)


def _wait(handed: submission.Submission, job: Job, on: str, say: Say) -> None:
    """Until a scheduler's job is over; not for long once every rank has said all it had to say."""
    asked, shown, complete = scheduler(handed.on), None, 0.0
    try:
        while not complete or time.monotonic() < complete + END_S:
            complete = complete or (time.monotonic() if _complete(job) else 0.0)
            state = asked.state(handed.id)
            if state is None:
                return
            if state != shown:
                shown = state
                say(f"job {handed.id} at {on}: {state}")
            time.sleep(ASK_S)
    except KeyboardInterrupt:
        with suppress(UserError):
            asked.cancel(handed.id)
        raise


def _complete(job: Job) -> bool:
    with suppress(UserError):
        facts = collect(job.run)
        return len(facts) == job.ranks and all(each["stage"] == "done" for each in facts)
    return False
