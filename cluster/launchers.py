"""`--on`: from its words to a launcher."""

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.job import Launcher
from cluster.submission import Scheduler
from data.errors import UserError

if TYPE_CHECKING:
    from cluster.on_slurm import Slurm

KNOWN = "local, slurm[=SITE.yaml], ray[=ADDRESS]"


def launcher(on: str, after: str | None = None) -> Launcher:
    """The launcher that `--on` means. Raises UserError where there is none, or it isn't installed.

    Args:
        after: with Slurm, a job id or a run whose job must end well before this one begins.
    """
    name, _, detail = on.partition("=")
    if name == "slurm":
        return slurm(on, after)
    if after is not None:
        raise UserError(f"--after {after}: only --on slurm lets a job wait for another one")
    if name == "local" and not detail:
        from cluster.on_local import Local

        return Local()
    if name == "ray":
        from cluster.on_ray import OnRay

        return OnRay(detail)
    raise UserError(f"--on {on}: no such launcher; known: {KNOWN}")


def scheduler(on: str) -> Scheduler:
    """The scheduler that a submission was handed to."""
    name, _, detail = on.partition("=")
    if on == "slurm":
        return slurm(on, None)
    if name == "ray":
        from cluster.on_ray import OnRay

        return OnRay(detail)
    raise UserError(f"{on} is no scheduler")


def slurm(on: str, after: str | None) -> "Slurm":
    """The Slurm that `--on` means. Raises UserError where it means something else."""
    from cluster.on_slurm import Slurm, job_of
    from cluster.slurm.site import read_site

    name, _, site = on.partition("=")
    if name != "slurm":
        raise UserError(f"--on {on}: this command runs here, or as a job of its own with --on slurm[=SITE.yaml]")
    file = Path(site).absolute() if site else None
    return Slurm(read_site(file), job_of(after) if after else None, str(file) if file else None)
