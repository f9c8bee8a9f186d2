"""The front door: one command, a few lines a verb; what is heavy is imported inside the verb that needs it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.provision.app import app as cluster_app

app = typer.Typer(
    name="luban",
    help="Pretrain and fine-tune language models. Every token is accounted for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Build datasets, and look into them.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train tokenizers, and look into them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(cluster_app, name="cluster")

RecipeArgument = Annotated[
    str | None, typer.Argument(help="A YAML file, or the name of a recipe that comes with Luban.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as optimizer.lr=3e-4.", show_default=False)
]
DatasetOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as split.valid=0.05.", show_default=False)
]
Show = Annotated[bool, typer.Option("--show", help="Print the resolved recipe, each setting documented, and stop.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")]
On = Annotated[str, typer.Option("--on", help="Where to run: local, slurm[=SITE.yaml] or ray[=ADDRESS].")]
After = Annotated[
    str | None,
    typer.Option("--after", help="With --on slurm: begin when this job, or this run's job, has ended well."),
]
Array = Annotated[
    str | None,
    typer.Option(
        "--array", help="With --on slurm: a run NAME-0, NAME-1 ... for each value of KEY=[V,V...], as one job array."
    ),
]
Takeover = Annotated[
    bool,
    typer.Option("--takeover", help="Take the run from whoever runs it, at once: what that start still does is void."),
]
RunArgument = Annotated[str, typer.Argument(help="A run's name under runs/, or its folder.", show_default=False)]
PointArgument = Annotated[
    str, typer.Argument(help="RUN, RUN@STEP or RUN@best; without a point, its newest checkpoint.", show_default=False)
]


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

    settings = _load(DatasetRecipe, recipe, overrides, RECIPES, "stdlib")
    if show:
        typer.echo(manual(settings), nl=False)
        return
    folder = out or _home() / "datasets" / settings.name
    if on == "local":
        build(_at_home(settings), folder, progress=for_this_stream())
    else:
        from cluster.build_on_ray import build_on_ray

        build_on_ray(_at_home(settings), folder, on)


@data_app.command("pack")
def data_pack(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder.", show_default=False)],
    context: Annotated[list[int], typer.Option(min=1, help="In tokens; may be given several times.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
) -> None:
    """Make best-fit packing plans of a built dataset, for runs with this model.context and data.packing=best_fit."""
    from data.order.packing import pack_dataset
    from data.progress import for_this_stream

    pack_dataset(_found(dataset), context, workers, for_this_stream())


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

    place = dataset if is_remote(dataset) else _found(Path(dataset))
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

    settings = _load(DatasetRecipe, recipe, overrides, RECIPES, "stdlib")
    train_tokenizer(_at_home(settings), out or _home() / "tokenizers" / settings.name, progress=for_this_stream())


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

    path, *places = map(_found, (path, *(on or [])))
    said = inspect(Tokenizer.load(path, roles(special or [])), text_to_look_at(path, places))
    typer.echo(json.dumps(said, ensure_ascii=False, indent=1) if as_json else report(said))


@app.command()
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
    found = planning.plan(settings.validate(Recipe, *_tree(recipe, overrides, RECIPES, "stdlib")), asked)
    typer.echo(json.dumps(planning.as_json(found)) if as_json else planning.text(found))
    if refused := planning.refusal(found):
        raise UserError(refused)


@app.command()
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


@app.command()
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


@app.command()
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
    on: Annotated[str, typer.Option("--on", help="Where to run: local or slurm[=SITE.yaml].")] = "local",
    after: After = None,
    dry_run: DryRun = False,
) -> None:
    """Figures of the validation split, each beside a trivial baseline.

    Text: loss, perplexity, bits per byte, accuracy; completions, translations and summaries also BLEU, chrF and ROUGE.
    Classes: accuracy, F1, a table by class; numbers: correlations; questions: exact match and F1 of the answers.

    --stride, --pairs and --groups each ask something else, and are said instead.

    With --on slurm it is a job of its own, and what it prints goes to the run's logs.
    """
    from data.errors import UserError

    asked = {"--stride": stride, "--pairs": pairs, "--groups": groups}
    asked = {option: str(value) for option, value in asked.items() if value is not None}
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are several questions: ask one after the other")
    if dataset is not None and (pairs or groups):
        raise UserError(f"{next(iter(asked))} brings its own texts: leave --dataset out")
    if on != "local" or after is not None:
        from cluster.job import command_job
        from cluster.launchers import slurm
        from data.remote.origin import is_remote
        from trainer.run import Source, read_recipe

        chosen, source = slurm(on, after), Source.parse(run)
        if chosen.after is None:
            source.checkpoint()
        words = ["evaluate", f"{source.run.absolute()}{f'@{source.point}' if source.point else ''}"]
        words += ["--dataset", dataset if is_remote(dataset) else str(Path(dataset).absolute())] if dataset else []
        words += ["--rows", str(rows), "--generations", str(generations)]
        for option, value in asked.items():
            words += [option, value if option == "--stride" else str(Path(value).absolute())]
        job = command_job(source.run, read_recipe(source.run), tuple(words))
        if dry_run:
            typer.echo(chosen.render_command(job), nl=False)
            return
        raise typer.Exit(chosen.submit_command(job))
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
    else:
        from trainer.scores import evaluate_run

        typer.echo(evaluate_run(run, dataset, rows, generations))


@app.command()
def generate(
    run: PointArgument,
    prompt: Annotated[list[str] | None, typer.Argument(help="Texts to continue.", show_default=False)] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A file of prompts (-: stdin), one a line or JSONL with a prompt each; JSONL with texts comes."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk with a model that was fine-tuned on chats.")] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: instead of the dataset's system prompt.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a continuation.")] = 64,
    min_tokens: Annotated[int, typer.Option(min=0, help="Fewest tokens of a continuation.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens of this mass.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among tokens this times as likely as the likeliest; 0: all.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens said already get less likely.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="No N tokens come twice in a row; 0: may.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search with so many.")] = 1,
    early_stopping: Annotated[
        str, typer.Option(help="When beam search ends: false, true or never, as in transformers.")
    ] = "false",
    length_penalty: Annotated[float, typer.Option(help="With beams: above 0 favours longer texts.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue prompts with a run's model, or talk with it.

    A continuation by itself is printed as it is made.
    """
    from trainer.generation.console import generate_text
    from trainer.generation.settings import Decoding, early_stopping_of

    decoding = Decoding(
        tokens, min_tokens, temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, num_beams,
        early_stopping_of(early_stopping), length_penalty, samples, seed,
    )  # fmt: skip
    generate_text(run, decoding, prompt or [], prompts, chat, system)


@app.command()
def export(
    run: PointArgument,
    out: Annotated[Path, typer.Argument(help="The directory to write; it must not be there.", show_default=False)],
    gguf: Annotated[
        Path | None, typer.Option(help="Also write this file, for llama.cpp and what is built on it (llama only).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32 or bf16.")] = "fp32",
    adapter: Annotated[bool, typer.Option("--adapter", help="The run's adapter alone, in PEFT's format.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare logits with transformers, and refuse a wrong export.")
    ] = True,
) -> None:
    """Write a run's weights as a Hugging Face directory, with tokenizer, model card and data provenance.

    A LoRA adapter is merged into the weights. The directory appears when transformers has loaded it and given the
    logits of Luban's model on validation rows.
    """
    from data.errors import UserError

    if adapter:
        from trainer.adapters.save import save_adapter

        for file in save_adapter(run, out):
            typer.echo(file)
        return
    from trainer.hf.export import export as write

    if dtype not in ("fp32", "bf16"):
        raise UserError(f"--dtype {dtype}: weights are written in fp32 or bf16")
    write(run, out, dtype, check, gguf, typer.echo)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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

    settings = validate(Recipe, *_tree(recipe, overrides, RECIPES, "stdlib"))
    found = examine(settings, launcher(on), on, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(document(found.verdicts, found.facts, found.seconds), indent=1))
    else:
        typer.echo(f"{table(found.verdicts)}; {found.seconds:.1f} s")
    raise typer.Exit(1 if failed(found.verdicts) else 0)


@app.command()
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
    from trainer.recipe import RECIPES

    tree, label = _tree(name, overrides, RECIPES, default)
    file = Path(name) if name else None
    raise typer.Exit(
        train(Asked(tree, label, file, kind, source, on, after, array, show, dry_run, takeover), typer.echo)
    )


def _load(section: Any, name: str | None, overrides: list[str] | None, recipes: Path, default: str) -> Any:
    from data.settings import validate

    if name is None or "=" in name:
        own = any(item.startswith("sources=") for item in (name or "", *(overrides or [])))
        default = "folder" if own else default  # its splits are for one's own text, the library's for the demo
    return validate(section, *_tree(name, overrides, recipes, default))


def _tree(name: str | None, overrides: list[str] | None, recipes: Path, default: str) -> tuple[dict[str, Any], str]:
    """The recipe called `name` (a file, a shipped one, or `default`) with the overrides on top, and what to call it."""
    from data.errors import UserError
    from data.settings import apply, read_yaml

    overrides = list(overrides or [])
    if name is not None and "=" in name and not Path(name).exists():
        overrides.insert(0, name)  # settings alone: the default recipe
        name = None
    path = Path(name) if name is not None and name.endswith((".yaml", ".yml")) else recipes / f"{name or default}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
        raise UserError(f"there is no recipe {name}: give a YAML file, or one of those that come with Luban: {shipped}")
    return apply(read_yaml(path), overrides), name or f"the recipe {default}"


def _at_home(recipe: Any) -> Any:
    """A dataset recipe whose datasets are looked for under LUBAN_HOME where the working directory has none."""

    def place(path: Path | None) -> Path | None:
        return _home() / path if path is not None and not path.exists() and (_home() / path).exists() else path

    sources = tuple(
        source.model_copy(update={"path": str(place(source.local))}) if source.kind == "dataset" else source
        for source in recipe.sources
    )
    tokenizer = recipe.tokenizer.model_copy(update={"reuse": place(recipe.tokenizer.reuse)})
    return recipe.model_copy(update={"sources": sources, "tokenizer": tokenizer})


def _home() -> Path:
    from trainer.run import home

    return home()


def _found(place: Path) -> Path:
    """A path as it is given, if it is there or absolute; else under LUBAN_HOME."""
    return place if place.exists() or place.is_absolute() else _home() / place


def main() -> None:
    """Run the command line; a person's mistake is one message and exit code 2, never a traceback."""
    from data.errors import UserError
    from data.remote.patience import Unreachable

    try:
        app()
    except UserError as error:
        print(f"luban: {error}", file=sys.stderr)
        sys.exit(2)
    except Unreachable as error:
        print(f"luban: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("luban: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
