"""The front door: one command, a few lines a verb; what is heavy is imported inside the verb that needs it.

`luban --help` answers in 0.2 s because nothing here loads torch, ray or wandb.
"""

import sys

import typer

from cluster.provision.app import app as cluster_app
from luban.dataset import data_app, tokenizer_app
from luban.evaluation import evaluate, explain
from luban.model import export, generate
from luban.run import logs, report, status, stop, verify
from luban.training import demo, doctor, finetune, plan, pretrain

app = typer.Typer(
    name="luban",
    help="Pretrain and fine-tune language models. Every token is accounted for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    plan, pretrain, finetune, evaluate, explain, generate, export, verify, status, logs, stop, report, doctor, demo,
):  # fmt: skip
    app.command()(verb)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(cluster_app, name="cluster")


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
