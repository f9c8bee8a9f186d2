"""The verbs that come before a run and begin it: plan, doctor, pretrain, finetune, demo."""

from pathlib import Path
from typing import Annotated

import typer

from luban.arguments import After, Array, DryRun, On, Overrides, RecipeArgument, Show, Takeover
from luban.recipes import recipe_file, recipe_tree


def plan(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="h100, h200, b200, a100, l40s ..., or cpu; default: here.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0.1, help="Memory of one rank's device, in GB.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Take a few real steps here, and time them.")] = False,
    like: Annotated[str | None, typer.Option(help="As fast as this RUN was, by its FLOP/s.")] = None,
    efficiency: Annotated[float | None, typer.Option(help="Share of the device's peak (MFU), such as 0.4.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU for an hour.")] = None,
    watts: Annotated[float | None, typer.Option(min=0, help="Of one device; default: its data sheet's.")] = None,
    disk_gb_s: Annotated[float | None, typer.Option(min=0.001, help="To storage, all ranks together.")] = None,
    copy_gb_s: Annotated[float | None, typer.Option(min=0.001, help="From a device to its host.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="For a suggestion in nodes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes and seconds, for a program.")] = False,
) -> None:
    """Memory of a rank, time, checkpoints, energy and cost of a recipe, before anything is spent; and what would fit.

    The dataset needn't be there. What isn't known is n/a. Ends with 2 where the recipe doesn't fit.
    """
    import json

    from cluster.plan import plan as planning
    from data import settings
    from data.errors import UserError
    from trainer.recipe import RECIPES, Recipe

    asked = planning.Question(
        device, memory_gb, efficiency, planning.parsed_run(like), measure, price, watts, disk_gb_s, copy_gb_s,
        ranks_per_node,
    )  # fmt: skip
    planning.check(asked)
    found = planning.plan(settings.validate(Recipe, *recipe_tree(recipe, overrides, RECIPES, "stdlib")), asked)
    typer.echo(json.dumps(planning.as_json(found)) if as_json else planning.text(found))
    if refused := planning.refusal(found):
        raise UserError(refused)


def pretrain(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Start from the weights of RUN[@STEP] or a Hugging Face directory, as a new run."),
    ] = None,
    on: On = "local",
    after: After = None,
    array: Array = None,
    show: Show = False,
    dry_run: DryRun = False,
    takeover: Takeover = False,
) -> None:
    """Train a model. Called again for the same run, it goes on where it left off.

    Ctrl-C, `luban stop RUN` or launch.stop_after_minutes save and stop it. While a start of the run is alive another
    one is refused and told who holds it; --takeover fences the holder instead of waiting for it.

    Ends with 0 done, 2 a mistake in what was asked, 75 stopped early and resumable, 1 a fault.
    """
    _train("stdlib", recipe, overrides, source, on, after, array, show, dry_run, takeover)


def finetune(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Whose weights to start from: RUN, RUN@STEP, RUN@best, a Hugging Face directory."),
    ] = None,
    on: On = "local",
    after: After = None,
    array: Array = None,
    show: Show = False,
    dry_run: DryRun = False,
    takeover: Takeover = False,
) -> None:
    """Train a pretrained model on a dataset of examples; only their completions count in the loss.

    Without a recipe: write docstrings. The model is the pretrained run's; train.trainable freezes parts of it.
    """
    _train("docstrings", recipe, overrides, source, on, after, array, show, dry_run, takeover, kind="examples")


def doctor(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    on: On = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Verdicts and the facts they come from, as JSON.")] = False,
) -> None:
    """Look at the machines that a recipe would run on, before they are trusted with it.

    Starts as many ranks as it asks for, in the same places, for some seconds: GPUs, memory, disk, whether runs/ is
    shared, clocks, network, versions, bandwidth, slow ranks, W&B. launch.preflight=true makes a start look by itself.

    Ends with 0 where nothing failed, 1 where something would end or spoil a run, 2 for a mistake in what was asked.
    """
    import json

    from cluster.doctor.checkup import examine
    from cluster.doctor.judge import document, failed, table
    from cluster.launchers import launcher
    from data.settings import validate
    from trainer.recipe import RECIPES, Recipe

    settings = validate(Recipe, *recipe_tree(recipe, overrides, RECIPES, "stdlib"))
    found = examine(settings, launcher(on), on, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(document(found.verdicts, found.facts, found.seconds), indent=1))
    else:
        typer.echo(f"{table(found.verdicts)}; {found.seconds:.1f} s")
    raise typer.Exit(1 if failed(found.verdicts) else 0)


def demo(
    short: Annotated[bool, typer.Option("--short", help="The same road in at most three minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Where datasets/ and runs/ of the demo go.")] = Path("demo"),
) -> None:
    """Raw text to a pretrained, killed, resumed, verified, fine-tuned and evaluated model, on this machine."""
    from cluster.demo import run_demo

    raise typer.Exit(run_demo(out, short))


def _train(
    default: str, name: str | None, overrides: list[str] | None, source: str | None, on: str, after: str | None,
    array: str | None, show: bool, dry_run: bool, takeover: bool, kind: str | None = None,
) -> None:  # fmt: skip
    from cluster.training import Asked, train
    from data.settings import apply, given, read_yaml
    from trainer.recipe import RECIPES

    path, stated, label = recipe_file(name, overrides, RECIPES, default)
    tree, varied = read_yaml(path), [array] if array else []
    shipped = set(given(tree)).difference(given(apply({}, [*stated, *varied]))) if path.parent == RECIPES else ()
    file = Path(name) if name else None
    asked = Asked(
        apply(tree, stated), label, file, frozenset(shipped), kind, source, on, after, array, show, dry_run, takeover
    )
    raise typer.Exit(train(asked, typer.echo))
