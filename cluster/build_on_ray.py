"""`luban data build --on ray[=ADDRESS]`: the build as a job of a Ray cluster, its progress shown here until it is over.

As with runs, the code that is submitted is this installation's own, and the address is the dashboard's. The recipe
travels as a file beside the dataset, readable to its owner only. If this command ends, the job goes on.
"""

import os
import secrets
import shlex
import sys
import time
from pathlib import Path

from cluster.on_ray import PACKAGES, OnRay
from cluster.ray.dashboard import Dashboard
from data.errors import UserError
from data.recipe import DatasetRecipe
from data.settings import dump

_ASK_S = 1.0
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def build_on_ray(recipe: DatasetRecipe, out: Path, on: str) -> None:
    """Submit a build and follow it.

    Args:
        on: `ray` or `ray=ADDRESS`.
        out: the dataset's folder, which every node of the cluster sees at the same path.

    Raises:
        UserError: the cluster is out of reach or open to anybody; the build failed.
    """
    name, _, address = on.partition("=")
    if name != "ray":
        raise UserError(f"--on {on}: a dataset is built here (local) or on Ray (ray[=ADDRESS])")
    launcher, dashboard = OnRay(address), Dashboard(address)
    launcher.check_cluster()
    out = out.expanduser().absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    job = f"luban-data-{out.name}-{secrets.token_hex(4)}"
    file = out.parent / f".{job}.yaml"
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(dump(recipe))
    try:
        launcher.hand_over(_request(job, file, out))
        print(f"submitted {job} to {dashboard.address}; it goes on without this command", file=sys.stderr)
        _follow(dashboard, job)
    finally:
        if (dashboard.job(job) or {}).get("status") in (None, *_OVER):
            file.unlink(missing_ok=True)


def _request(job: str, file: Path, out: Path) -> dict:
    """What is submitted, as the arguments of Ray's `submit_job`."""
    return {
        "submission_id": job,
        "entrypoint": shlex.join(["python", "-P", "-m", "cluster.ray.build", str(file), str(out)]),
        "runtime_env": {
            "py_modules": [str(Path(__file__).parent.parent / package) for package in PACKAGES],
            "excludes": ["__pycache__"],
        },
    }


def _follow(dashboard: Dashboard, job: str) -> None:
    """Show what the job says until it is over. Raises UserError with its last word where it failed."""
    shown = ""
    while True:
        over = (dashboard.job(job) or {}).get("status") in _OVER
        said = str((dashboard.get(f"/api/jobs/{job}/logs") or {}).get("logs") or "")
        new, shown = said.removeprefix(shown), said
        print(new, end="", file=sys.stderr, flush=True)
        if over:
            break
        time.sleep(_ASK_S)
    found = dashboard.job(job) or {}
    if found.get("status") != "SUCCEEDED":
        errors = [line for line in shown.splitlines() if line.startswith("error: ")]
        why = errors[-1].removeprefix("error: ") if errors else str(found.get("message") or "")[:300]
        raise UserError(f"the build {job} on Ray {str(found.get('status', 'is gone')).lower()}: {why}")
