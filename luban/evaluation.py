"""The verbs that ask a model questions: evaluate, explain."""

from pathlib import Path
from typing import Annotated

import typer

from luban.arguments import After, DryRun, PointArgument


def evaluate(
    run: PointArgument,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the run's own: a folder or a URL.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the validation split; 0: all.")] = 0,
    generations: Annotated[int, typer.Option(min=0, help="Answers to generate for BLEU, chrF, ROUGE.")] = 64,
    stride: Annotated[
        int | None, typer.Option(help="Perplexity by a window that slides by so many tokens.", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Minimal pairs as BLiMP has them: JSONL, or a folder of it.", show_default=False)
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="JSONL of text and group: what the model makes of each.", show_default=False)
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option(help="Local tasks of lm-eval: a YAML file, or a folder of them.", show_default=False)
    ] = None,
    on: Annotated[str, typer.Option("--on", help="Where to run: local or slurm[=SITE.yaml].")] = "local",
    after: After = None,
    dry_run: DryRun = False,
) -> None:
    """Figures of the validation split, each beside a trivial baseline.

    Text: loss, perplexity, bits per byte, accuracy; completions, translations and summaries also BLEU, chrF and ROUGE.
    Classes: accuracy, F1, a table by class; numbers: correlations; questions: exact match and F1 of the answers.

    --stride, --pairs, --groups and --lm-eval each ask something else, and are said instead.

    With --on slurm it is a job of its own, and what it prints goes to the run's logs.
    """
    from data.errors import UserError

    asked = {"--stride": stride, "--pairs": pairs, "--groups": groups, "--lm-eval": lm_eval}
    asked = {option: str(value) for option, value in asked.items() if value is not None}
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are several questions: ask one after the other")
    for option, given in (("--rows", rows != 0 and stride is None), ("--generations", generations != 64)):
        if asked and given:
            raise UserError(f"{option} has no meaning beside {next(iter(asked))}: leave it out")
    if dataset is not None and asked and stride is None:
        raise UserError(f"{next(iter(asked))} brings its own texts: leave --dataset out")
    if on != "local" or after is not None:
        words = ["--rows", str(rows), "--generations", str(generations)]
        for option, value in asked.items():
            words += [option, value if option == "--stride" else str(Path(value).absolute())]
        _as_job(run, dataset, words, on, after, dry_run)
        return
    if dry_run:
        raise UserError("--dry-run prints the job that --on slurm would submit; here nothing is submitted")
    if stride is not None:
        from trainer.sliding import evaluate_sliding

        typer.echo(evaluate_sliding(run, dataset, stride, rows))
    elif pairs is not None:
        from trainer.minimal_pairs import evaluate_pairs

        typer.echo(evaluate_pairs(run, pairs))
    elif groups is not None:
        from trainer.groups import evaluate_groups

        typer.echo(evaluate_groups(run, groups))
    elif lm_eval is not None:
        from trainer.local_tasks import evaluate_tasks

        typer.echo(evaluate_tasks(run, lm_eval))
    else:
        from trainer.scores import evaluate_run

        typer.echo(evaluate_run(run, dataset, rows, generations))


def _as_job(run: str, dataset: str | None, words: list[str], on: str, after: str | None, dry_run: bool) -> None:
    """Hand the same question to Slurm, with absolute paths; or print what would be submitted."""
    from cluster.job import command_job
    from cluster.launchers import slurm
    from data.remote.origin import is_remote
    from trainer.run import Source, read_recipe

    chosen, source = slurm(on, after), Source.parse(run)
    if chosen.after is None:
        source.checkpoint()
    place = f"{source.run.absolute()}{f'@{source.point}' if source.point else ''}"
    other = ["--dataset", dataset if is_remote(dataset) else str(Path(dataset).absolute())] if dataset else []
    job = command_job(source.run, read_recipe(source.run), ("evaluate", place, *other, *words))
    if dry_run:
        typer.echo(chosen.render_command(job), nl=False)
        return
    raise typer.Exit(chosen.submit_command(job))


def explain(
    run: PointArgument,
    text: Annotated[str, typer.Argument(help="What the model reads.", show_default=False)],
    second: Annotated[
        str | None, typer.Option(help="The second text of a pair, or a question's context.", show_default=False)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Explain this class or text; default: what the model says itself.", show_default=False),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Whose heads are shown one by one; default: the last.", show_default=False)
    ] = None,
) -> None:
    """What a model looks at in one input, and what its answer owes to each token: pictures in the run's report.

    Attention by layer and head, and integrated gradients of the next token, the answer, the class or the number.
    """
    from trainer.explain import explain_run

    typer.echo(explain_run(run, text, second, target, layer))
