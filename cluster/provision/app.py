"""The verbs of `luban cluster`, a few lines each; what is heavy is imported inside the verb that needs it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Bring Ray clusters up and down: hosts by ssh, AWS, GCP, Kubernetes.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(help="A cluster file; cluster/provision/cluster_file.py is its manual.", show_default=False)
]
Command = Annotated[
    list[str] | None,
    typer.Argument(help="Kubernetes, Slurm: what to run on a cluster of its own, after --.", show_default=False),
]


@app.command()
def up(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be applied, and apply nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the least workers have joined.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="End it first, with everything that runs there.")] = False,
) -> None:
    """Bring a cluster up; one that is up as its file says is left alone, a changed file needs --restart.

    Kubernetes applies a changed file by itself. The dashboard stays on loopback, and a token is always asked for.
    """
    from cluster.provision import apply as provision

    if dry_run:
        typer.echo(provision.render(file), nl=False)
    else:
        raise typer.Exit(provision.up(file, wait, restart, typer.echo))


@app.command()
def status(file: File) -> None:
    """Which nodes are there, what they have, and how to reach them."""
    from cluster.provision import apply as provision

    provision.status(file, typer.echo)


@app.command()
def down(file: File) -> None:
    """End a cluster and remove what it left: processes, token, key and configuration on its nodes."""
    from cluster.provision import apply as provision

    provision.down(file, typer.echo)


@app.command()
def render(file: File, command: Command = None) -> None:
    """Print what `up` applies; with a command a RayJob (Kubernetes) or a batch script (Slurm) that runs it."""
    from cluster.provision import apply as provision

    typer.echo(provision.render(file, command or ()), nl=False)


@app.command()
def check(
    file: File,
    command: Command = None,
    crd: Annotated[
        Path | None, typer.Option(help="KubeRay's CustomResourceDefinition of the operator in use, to check against.")
    ] = None,
) -> None:
    """Check a file, and what is rendered for it against Ray's schema, or the fields of KubeRay.

    The definition comes from the cluster: kubectl get crd rayclusters.ray.io -o yaml > CRD.yaml
    """
    from cluster.provision import apply as provision

    provision.check(file, crd, command or (), typer.echo)
