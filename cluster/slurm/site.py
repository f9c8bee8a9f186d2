"""What one Slurm site is like, and the reference manual of the file that says so: `--on slurm=SITE.yaml`.

How much a run asks for stands in its recipe (`launch`); here is what all runs at a site share. `slurm/site.yaml` is an
example to copy. Secrets are named, never written: Slurm hands the submitting shell's environment to the job.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data.errors import UserError
from data.settings import Free, Section, load

SECRET = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?)($|_)")
OURS = (
    "job-name", "chdir", "output", "error", "open-mode", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gres",
    "gpus-per-node", "mem", "time", "signal", "requeue", "no-requeue", "no-kill", "dependency", "array", "export",
    "partition", "account", "qos", "constraint",
)  # fmt: skip


def _word(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\S+", value):
        raise ValueError("must be one word, without spaces")
    return value


def _line(value: str) -> str:
    if "\n" in value:
        raise ValueError("must be one line")
    return value


def _option(value: str) -> str:
    found = re.fullmatch(r"--([a-z][a-z-]*)(?:[= ]\S.*)?", _line(value))
    if not found:
        raise ValueError("an option is written as --name or --name=value")
    if found[1] in OURS:
        raise ValueError(f"--{found[1]} comes from the recipe's `launch` or from a setting of its own")
    return value


def _environment(value: dict[str, str | int | float | None]) -> dict[str, str | int | float | None]:
    for name, held in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of a variable")
        if held is not None and SECRET.search(name):
            raise ValueError(f"{name} looks like a secret: write `{name}: null`, and set it in the shell that submits")
    return value


Word = Annotated[Free[str | None], AfterValidator(_word)]


class Container(Section):
    """An image in which the ranks run."""

    image: Word = None
    """A file, or what the runtime takes as a reference. null: no container."""
    runtime: Free[Literal["apptainer", "pyxis"]] = "apptainer"
    """apptainer: the command; pyxis: srun's plug-in for enroot."""
    mounts: Free[tuple[Annotated[str, AfterValidator(_word)], ...]] = ()
    """Folders seen inside, as SOURCE or SOURCE:TARGET, such as the datasets'; the run's own comes by itself."""
    python: Free[str] = "python3"
    """The Python inside that has Luban."""


class Site(Section):
    """One Slurm site."""

    partition: Word = None
    """Where jobs go. null: the site's default partition."""
    account: Word = None
    """Who is charged. null: the site's default."""
    qos: Word = None
    """Quality of service. null: the site's default."""
    constraint: Word = None
    """Features that the nodes must have, as sbatch takes them."""
    gres: Free[Annotated[str, AfterValidator(_word)]] = "gpu"
    """How the site calls its GPUs: gpu, or with a type, such as gpu:h100."""
    modules: Free[tuple[Annotated[str, AfterValidator(_word)], ...]] = ()
    """Loaded with `module load` before anything else."""
    environment: Annotated[Free[dict[str, str | int | float | None]], AfterValidator(_environment)] = Field(default={})
    """Variables for the job and its ranks. null: by name alone, from the shell that submits, and never written
    anywhere; so go secrets, such as WANDB_API_KEY."""
    python: Free[str | None] = None
    """The Python that has Luban, on every node. null: the one that submits."""
    container: Container = Container()
    """An image for the ranks; the supervisor stays outside."""
    sbatch: Free[tuple[Annotated[str, AfterValidator(_option)], ...]] = ()
    """Further options of sbatch, such as --exclusive."""
    lead_s: Free[int] = Field(default=180, ge=30, le=65535)
    """The ranks are asked to save so long before the time limit, in seconds; Slurm may do it a minute earlier."""
    requeue: Free[bool] = True
    """Queue the job again at the time limit, after preemption and after a node's failure. false: it ends with 75."""
    shared: Free[bool] = False
    """The nodes see the run's folder, although it looks local to the machine that submits."""


def read_site(path: Path | None) -> Site:
    """The site in a file, or one of defaults alone.

    Raises:
        UserError: there is no such file, or it is wrong; every mistake is named at once.
    """
    if path is not None and not path.is_file():
        raise UserError(f"there is no site file {path}: copy slurm/site.yaml, and name it with --on slurm=SITE.yaml")
    return load(Site, path)
