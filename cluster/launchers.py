"""`--on`: from its words to a launcher."""

from cluster.job import Launcher
from cluster.submission import Scheduler
from data.errors import UserError

KNOWN = "local, slurm[=SITE.yaml], ray[=ADDRESS]"


def launcher(on: str) -> Launcher:
    """The launcher that `--on` means. Raises UserError where there is none, or it isn't installed."""
    name, _, detail = on.partition("=")
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
    if name == "ray":
        from cluster.on_ray import OnRay

        return OnRay(detail)
    raise UserError(f"{on} is no scheduler")
