"""The verbs of `luban data` and `luban tokenizer`."""

from pathlib import Path
from typing import Annotated

import typer

from luban.arguments import DatasetOverrides, RecipeArgument, RunArgument, Show
from luban.recipes import at_home, load_recipe, sources_at_home

data_app = typer.Typer(help="Build datasets, and look into them.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train tokenizers, and look into them.", no_args_is_help=True)


@data_app.command("build")
def data_build(
    recipe: RecipeArgument = None,
    overrides: DatasetOverrides = None,
    out: Annotated[Path | None, typer.Option(help="The dataset's folder; default: datasets/NAME.")] = None,
    on: Annotated[str, typer.Option(help="local, or ray[=ADDRESS]: the cluster whose dashboard that is.")] = "local",
    show: Show = False,
) -> None:
    """Corpus -> clean -> deduplicate -> tokenize -> shards, with a report of what was dropped and why.

    Without a recipe: the running Python's standard library. The same input gives the same bytes, at any number of
    processes.
    """
    from data.build.build import build
    from data.progress import for_this_stream
    from data.recipe import RECIPES, DatasetRecipe
    from data.settings import manual
    from trainer.run import home

    settings = load_recipe(DatasetRecipe, recipe, overrides, RECIPES, "stdlib")
    if show:
        typer.echo(manual(settings), nl=False)
        return
    folder = out or home() / "datasets" / settings.name
    if on == "local":
        build(sources_at_home(settings), folder, progress=for_this_stream())
    else:
        from cluster.build_on_ray import build_on_ray

        build_on_ray(sources_at_home(settings), folder, on)


@data_app.command("pack")
def data_pack(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder.", show_default=False)],
    context: Annotated[list[int], typer.Option(min=1, help="In tokens; may be given several times.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
) -> None:
    """Make best-fit packing plans of a built dataset, for runs with this model.context and data.packing=best_fit."""
    from data.order.pack import pack_dataset
    from data.progress import for_this_stream

    pack_dataset(at_home(dataset), context, workers, for_this_stream())


@data_app.command("inspect")
def data_inspect(
    dataset: Annotated[str, typer.Argument(help="A dataset's folder, or its URL.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Re-read every file against its digest.")] = False,
    samples: Annotated[int, typer.Option(min=0, help="Documents of each split to show.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Counts, shares, lengths, packing plans, what was dropped and why, and decoded samples.

    Ends with 2 where --check finds a fault, and names each.
    """
    import json

    from data.inspect import inspect, page, refuse_faults
    from data.progress import for_this_stream
    from data.remote.origin import is_remote

    place = dataset if is_remote(dataset) else at_home(Path(dataset))
    found = inspect(place, check, samples, for_this_stream())
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
    refuse_faults(found)
    if not as_json:
        typer.echo(page(found))


@data_app.command("trace")
def data_trace(
    run: RunArgument,
    document: Annotated[
        str | None, typer.Option(help="A document's id, or the end of it, such as a file's path.", show_default=False)
    ] = None,
    step: Annotated[int | None, typer.Option(min=1, help="An update of the run.", show_default=False)] = None,
) -> None:
    """Which steps of a run saw a document, in which epochs; or which documents a step saw.

    Counts the updates that made the newest weights; skipped rows and lost updates are told apart.
    """
    from data.errors import UserError
    from trainer.provenance import trace_document, trace_step
    from trainer.run import find
    from trainer.units import printable

    found = find(run)
    if document is not None and step is None:
        lines = trace_document(found, document)
    elif step is not None and document is None:
        lines = trace_step(found, step)
    else:
        raise UserError("say what to trace: --document ID, or --step N")
    for line in lines:
        typer.echo(printable(line))


@tokenizer_app.command("train")
def tokenizer_train(
    recipe: RecipeArgument = None,
    overrides: DatasetOverrides = None,
    out: Annotated[Path | None, typer.Option(help="The tokenizer's folder; default: tokenizers/NAME.")] = None,
) -> None:
    """Train a SentencePiece tokenizer on a dataset recipe's sources, without building the dataset."""
    from data.build.build import train_tokenizer
    from data.progress import for_this_stream
    from data.recipe import RECIPES, DatasetRecipe
    from trainer.run import home

    settings = load_recipe(DatasetRecipe, recipe, overrides, RECIPES, "stdlib")
    train_tokenizer(sources_at_home(settings), out or home() / "tokenizers" / settings.name, progress=for_this_stream())


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    path: Annotated[Path, typer.Argument(help="A tokenizer's file or folder, or a dataset.", show_default=False)],
    on: Annotated[list[Path] | None, typer.Option(help="Text to try it on: a dataset or a UTF-8 file.")] = None,
    special: Annotated[
        list[str] | None, typer.Option(help="ROLE=PIECE, where its files don't say, such as eos=[SEP].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """What its tokens cost by source, which characters it lacks, its longest, rarest and unused pieces."""
    import json

    from data.tokenizer.inspect import inspect, report, text_to_look_at
    from data.tokenizer.tokenizer import Tokenizer, roles

    path, *places = map(at_home, (path, *(on or [])))
    said = inspect(Tokenizer.load(path, roles(special or [])), text_to_look_at(path, places))
    typer.echo(json.dumps(said, ensure_ascii=False, indent=1) if as_json else report(said))
