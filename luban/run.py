"""The verbs about a run, alive or ended: status, logs, stop, verify, report."""

from pathlib import Path
from typing import Annotated

import typer

from luban.arguments import RunArgument


def status(run: RunArgument) -> None:
    """Where a run stands: step, loss, speed, attempts, checkpoints, and its job where Slurm or Ray has it.

    Reads nothing but its folder, from any machine that sees it, and asks the scheduler that it was handed to.
    """
    from cluster import submission
    from cluster.standing import standing
    from trainer.console import status as describe
    from trainer.run import find

    found = find(run)
    handed = submission.read(found)
    typer.echo(describe(found, handed.words if handed else None))
    if job := standing(found):
        typer.echo(f"{'job':<10}  {job}")


def logs(
    run: RunArgument,
    rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of which attempt; default: the newest.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many last lines; 0: all.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """What a rank said, wherever it runs: the logs lie in the run's folder, as attempt-N/rank-R.log.

    With --follow it ends as the run did: 0 done, 2 a mistake in what was asked, 75 stopped early, 1 a fault.
    """
    from cluster.logs import ended, show
    from trainer.run import find

    found = find(run)
    show(found, attempt, rank, lines, follow, typer.echo)
    if follow:
        raise typer.Exit(ended(found))


def stop(
    run: RunArgument,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the run has ended, or only leave the request.")
    ] = True,
) -> None:
    """Ask a run to finish its step, save and stop, wherever it runs: the request lies in its folder.

    The command that runs it ends with 75, and the same command goes on. This one ends with 0 when the run has stopped
    (or is done), 1 if it fell before it could, 2 where there is nothing to stop.
    """
    from cluster.stop import stop as ask
    from trainer.run import find

    raise typer.Exit(ask(find(run), wait, typer.echo))


def verify(
    run: RunArgument,
    against: Annotated[
        str | None, typer.Option(help="Another run of the same recipe: compare weights, moments, rows of each step.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Prove on its recipe, in a scratch folder, that resuming changes nothing.")
    ] = False,
    steps: Annotated[
        str | None, typer.Option(help="With --resume: updates before the kill and after, as N,M or one for both.")
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="With --resume: begin on A ranks and go on with B, as A,B.")] = None,
    zero: Annotated[int | None, typer.Option(help="With --resume: go on at this ZeRO stage.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="With --resume: leave the scratch folder.")] = False,
) -> None:
    """Re-read every checkpoint and shard against its digest, and check that each sample was seen exactly once.

    With --resume, train twice, once killed in the middle, and compare. Ends with 1 if anything is not as it was
    promised, naming the first thing that isn't.
    """
    from data.errors import UserError

    if resume:
        from cluster.resume_proof import prove_resume

        if against is not None:
            raise UserError("--against and --resume are two questions: ask one after the other")
        if not prove_resume(run, steps, ranks, zero, keep, typer.echo):
            raise typer.Exit(1)
        return
    if (steps, ranks, zero, keep) != (None, None, None, False):
        raise UserError("--steps, --ranks, --zero and --keep belong to --resume")
    from trainer.verify import verify_run

    if not verify_run(run, against, typer.echo):
        raise typer.Exit(1)


def report(
    runs: Annotated[list[str], typer.Argument(help="One run, or several to lay over each other.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first run.")] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side."""
    from trainer.report import write
    from trainer.run import find

    found = [find(name) for name in runs]
    others = "".join(f"-{run.name}" for run in found[1:])
    typer.echo(write(found, out or found[0] / f"report{others}.html"))
