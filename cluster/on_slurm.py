"""Slurm: a batch script that a person can read, submitted with sbatch, and queued again until the run is done.

The script is `slurm/train.sbatch` with a run's own figures in it. Everything Slurm is asked for stands in the script,
so that `--dry-run` prints what is submitted, all of it. What can be known beforehand is checked beforehand, last of all
by Slurm itself (`sbatch --test-only`).
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cluster import submission
from cluster.fate import mistake
from cluster.hold import Hold
from cluster.job import DONE, STOPPED, Job
from cluster.slurm import fit as slurm_fit
from cluster.slurm.client import GONE, Refused, ask, state, values
from cluster.slurm.site import Site
from data.errors import UserError
from data.publish import published
from trainer.run import find, finished

ON = "slurm"
BESIDE = Path(__file__).with_name("templates")  # in a wheel; in a checkout the folder is a neighbour
TEMPLATES = BESIDE if BESIDE.is_dir() else Path(__file__).parents[1] / "slurm"
SCRIPT = "job.sbatch"
ENDED_BY_SLURM = ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
MEMORY_FILES = ("tmpfs", "ramfs")
OWN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # each node has its own
NETWORK_FILES = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|gluster|panfs|weka|fuse|cifs|smb|9p|virtiofs|pvfs|orangefs")


class Slurm:
    """The launcher behind `--on slurm`, and the scheduler of what it has submitted."""

    def __init__(self, site: Site, after: str | None = None, file: str | None = None):
        """
        Args:
            after: the id of a job that must end well before this one may begin.
            file: where `site` was read from.
        """
        self.site, self.after, self.file = site, after, file

    def render(self, job: Job) -> str:
        """The batch script."""
        return self._script(job, job.run.name, f"the run {job.run.name}", "")

    def render_array(self, jobs: Mapping[int, Job]) -> str:
        """The batch script of several runs, each an element of a job array; they differ in their recipes alone.

        Args:
            jobs: by index, with which the name of each run's folder ends.
        """
        job = next(iter(jobs.values()))
        name = job.run.name.rpartition("-")[0]
        indices = ",".join(str(index) for index in jobs)
        return self._script(job, name, f"one of the runs {name}-N", indices)

    def _script(self, job: Job, name: str, what: str, indices: str) -> str:
        """The batch script of training; where there are `indices` it is a job array, and `name` lacks one."""
        site, inside = self.site, self.site.container
        host = shlex.quote(site.python or sys.executable)
        folder, task = str(job.run.absolute().with_name(name)), "-$SLURM_ARRAY_TASK_ID" if indices else ""
        output = _directive(folder, "-%a/logs/slurm-%A_%a.log" if indices else "/logs/slurm-%j.log")
        return fill(
            "train.sbatch",
            what=what,
            directives=_lines(
                self._whither(name, output),
                [f"--array={indices}"] * bool(indices),
                self._resources(job),
                [f"--signal=B:USR1@{site.lead_s}", "--requeue" if site.requeue else "--no-requeue"],
                ["--no-kill"] * (job.min_ranks < job.ranks),
                self._rest(),
            ),
            modules=f"module load {shlex.join(site.modules)}" if site.modules else "",
            environment="\n".join(_exports(job, site)),
            run=shlex.quote(folder) + task,
            python=shlex.quote(inside.python) if inside.image else host,
            supervisor=host if inside.image else '"$PYTHON"',
            options=" --takeover" * job.takeover
            + " --no-requeue" * (not site.requeue)
            + " --unrecorded" * (not job.recorded),
            cpus=str(_cpus(job)),
            pyxis=_pyxis(site),
            apptainer=_apptainer(job, site),
            ranks=str(job.ranks_per_node),
            rank=" ".join(_inner(word, job) for word in job.argv),
        )

    def check(self, job: Job) -> None:
        """Raises UserError where Slurm is out of reach, or would never run the job; every reason it can find."""
        for name, value in self.site.environment.items():
            if value is None and name not in os.environ:
                raise UserError(f"the site file passes {name} on by name, and it is not set here: export it first")
        local = _local(job.run)
        if local and not self.site.shared:
            raise UserError(
                f"{job.run.absolute()} lies on {local}, which each node has its own of: go to a folder that all nodes "
                "see (or LUBAN_HOME), or say `shared: true` in the site file if they do see this one"
            )
        there = slurm_fit.nodes(ask("sinfo", "--noheader", "--exact", "--format", slurm_fit.FORMAT))
        found = slurm_fit.problems(job, self.site, there)
        partition = slurm_fit.partition_of(self.site, there)
        if partition in {node.partition for node in there}:
            found += slurm_fit.limits(job, self.site, ask("scontrol", "show", "partition", partition, "--oneliner"))
        if found:
            raise UserError("Slurm would never run it:\n  " + "\n  ".join(found))
        text = self.render(job)
        try:
            ask("sbatch", "--test-only", text=text, environment=_environment(text))
        except Refused:
            waits = slurm_fit.too_few_up(job, self.site, there)
            if waits is None:
                raise
            print(waits)  # which sbatch itself takes for no reason to refuse a job

    def within_limits(self, minutes: int) -> int:
        """`minutes`, or what the partition allows where that is less. Raises UserError where Slurm doesn't answer."""
        there = slurm_fit.nodes(ask("sinfo", "--noheader", "--exact", "--format", slurm_fit.FORMAT))
        partition = slurm_fit.partition_of(self.site, there)
        if partition not in {node.partition for node in there}:
            return minutes  # `check` says what is wrong with it
        told = values(ask("scontrol", "show", "partition", partition, "--oneliner"))
        return int(min(minutes, slurm_fit.minutes(told.get("MaxTime", "UNLIMITED"))))

    def submit(self, job: Job, held: Hold) -> int:
        """Hand it over; returns 0. Raises UserError where Slurm refuses it, or the folder can't be written."""
        id = self._hand_over(self.render(job), {"": job})
        print(f"submitted job {id}, {state(id) or 'over'}; its own output goes to {job.run}/logs/slurm-{id}.log")
        return DONE

    def submit_array(self, jobs: Mapping[int, Job]) -> int:
        """Hand several runs over as one job array, while each is held; returns 0. Raises UserError as `submit` does."""
        id = self._hand_over(self.render_array(jobs), {f"_{index}": job for index, job in jobs.items()})
        print(f"submitted job {id}, with {', '.join(f'{job.run.name} as {id}_{index}' for index, job in jobs.items())}")
        return DONE

    def _hand_over(self, text: str, jobs: Mapping[str, Job]) -> str:
        """Submit a script, and write into the folder of each run which job has it; returns the job's id.

        Args:
            jobs: the runs' by what is added to the id.
        """
        for job in jobs.values():
            try:
                (job.run / "logs").mkdir(parents=True, exist_ok=True)
                with published(job.run / SCRIPT) as draft:
                    draft.write_text(text)
            except OSError as error:
                raise UserError(f"cannot write to {job.run}: {error.strerror or error}") from None
            if not self.site.shared and (kind := _unsure(job.run)):
                print(f"{job.run.absolute()} lies on {kind}: every node must see it under this path")
        id = _submitted(ask("sbatch", "--parsable", text=text, environment=_environment(text)))
        for end, job in jobs.items():
            try:
                submission.write(job.run, ON, id + end, self.file)
            except OSError as error:
                self.cancel(id)
                raise UserError(
                    f"cannot write to {job.run}: {error.strerror or error}; job {id} is cancelled"
                ) from None
        return id

    def state(self, id: str) -> str | None:
        """What Slurm says of a job; None where it is over or forgotten. Raises UserError where it doesn't answer."""
        return state(id)

    def reason(self, id: str) -> str | None:
        """Why a job failed, in a line; None where it didn't, or Slurm has forgotten it."""
        try:
            told = values(ask("scontrol", "show", "job", id, "--oneliner"))
        except Refused:
            return None
        word, code, log = told["JobState"], told["ExitCode"].partition(":")[0], told.get("StdOut", "")
        if word == "FAILED" and code != str(STOPPED):
            return mistake(Path(log)) or f"its batch script ended with {code}, see {log}"
        return word.lower().replace("_", " ") if word in ENDED_BY_SLURM else None

    def cancel(self, id: str) -> None:
        """End a job, begun or not. Raises UserError where Slurm doesn't answer."""
        ask("scancel", id)

    def render_command(self, job: Job) -> str:
        """The batch script of one command on one node, which is no rank and needs no supervisor."""
        site, inside = self.site, self.site.container
        name, folder = job.argv[job.argv.index("luban") + 1], str(job.run.absolute())
        return fill(
            "command.sbatch",
            what=f"luban {name} of the run {job.run.name}",
            directives=_lines(
                self._whither(f"{name}-{job.run.name}", _directive(folder, f"/logs/{name}-%j.log")),
                self._resources(job),
                self._rest(),
            ),
            modules=f"module load {shlex.join(site.modules)}" if site.modules else "",
            environment="\n".join(_exports(job, site)),
            python=shlex.quote(inside.python if inside.image else site.python or sys.executable),
            cpus=str(_cpus(job)),
            run=shlex.quote(folder),
            pyxis=_pyxis(site),
            apptainer=_apptainer(job, site),
            words=shlex.join(job.argv[1:]),
        )

    def submit_command(self, job: Job) -> int:
        """Hand such a command over; returns 0. Raises UserError where Slurm refuses it."""
        self.check(job)
        text = self.render_command(job)
        id = _submitted(ask("sbatch", "--parsable", text=text, environment=_environment(text)))
        log = re.findall(r"^#SBATCH --output=(.*)$", text, re.MULTILINE)[0].replace("%j", id)
        print(f"submitted job {id}, {state(id) or 'over'}; what it prints goes to {log}")
        return DONE

    def _whither(self, name: str, output: str) -> Iterator[str]:
        """Options of sbatch: what it is, where its output goes, and where it is queued."""
        yield f"--job-name={name}"
        yield f"--output={output}"
        yield "--open-mode=append"
        for setting in ("partition", "account", "qos", "constraint"):
            if (value := getattr(self.site, setting)) is not None:
                yield f"--{setting}={value}"

    def _resources(self, job: Job) -> Iterator[str]:
        """Options of sbatch: how much it asks for."""
        yield f"--nodes={job.nodes}"
        yield "--ntasks-per-node=1"
        yield f"--cpus-per-task={_cpus(job)}"
        if job.gpus_per_rank:
            yield f"--gres={self.site.gres}:{job.gpus_per_rank * job.ranks_per_node}"
        if job.memory_gb:
            yield f"--mem={slurm_fit.memory_mib(job)}M"
        if job.time_limit_minutes:
            yield f"--time={job.time_limit_minutes}"

    def _rest(self) -> Iterator[str]:
        """Options of sbatch: what it waits for, and what else a site wants."""
        if self.after:
            yield f"--dependency=afterok:{self.after}"
            yield "--kill-on-invalid-dep=yes"
        yield "--export=ALL"
        yield from self.site.sbatch


def job_of(after: str) -> str | None:
    """The job that `--after` means: its id, or that of a run's job; None where the run is done already.

    Raises:
        UserError: there is no such run, or its job is over and it isn't done: what waits for it would wait for ever.
            Or Slurm doesn't know the job: it would begin what waits for it at once, whatever became of that one.
    """
    if re.fullmatch(r"\d+(_\d+)?", after):
        try:
            ask("scontrol", "show", "job", after, "--oneliner")
        except Refused as error:
            if GONE not in str(error):
                raise
            raise UserError(
                f"--after {after}: Slurm knows no such job, or no longer how it ended: name the run instead, or leave "
                "--after out if it has ended well"
            ) from None
        return after
    run = find(after)
    if finished(run):
        return None
    job = submission.read(run)
    if job is None or job.on != ON:
        raise UserError(f"--after {after}: {run} was not handed over to Slurm")
    if state(job.id) is None:
        raise UserError(f"--after {after}: job {job.id} is over, and {run} is not done: start that run again first")
    return job.id


def fill(template: str, **values: str) -> str:
    """A template of `slurm/` with its {{names}} filled in; a line that comes out empty is left out."""
    lines = []
    for line in (TEMPLATES / template).read_text().splitlines():
        filled = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], line)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"


def _lines(*options: Iterable[str]) -> str:
    return "\n".join(f"#SBATCH {option}" for group in options for option in group)


def _cpus(job: Job) -> int:
    return job.cpus_per_rank * job.ranks_per_node


def _exports(job: Job, site: Site) -> Iterator[str]:
    """Lines of bash that set the environment; what comes by name alone is only looked for."""
    for name, value in {**dict(job.environment), **site.environment}.items():
        if value is None:
            yield f': "${{{name}:?comes by name from the shell that submits, and is not set in this job}}"'
        else:
            yield f"export {name}={shlex.quote(str(value))}"


def _inner(word: str, job: Job) -> str:
    """A word of a rank's argv, as it stands in a script between single quotes."""
    if word == job.argv[0]:
        return '"$PYTHON"'
    if word == str(job.run.absolute()):
        return '"$RUN"'
    if re.fullmatch(r"[\w./=:@%+,-]+", word):
        return word
    return '"' + re.sub(r'([\\"$`])', r"\\\1", word).replace("'", "'\\''") + '"'


def _pyxis(site: Site) -> str:
    if not site.container.image or site.container.runtime != "pyxis":
        return ""
    mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in site.container.mounts)
    more = f",{shlex.quote(mounts)}" if mounts else ""
    return f' --container-image={shlex.quote(site.container.image)} --container-mounts="$RUN:$RUN"{more}'


def _apptainer(job: Job, site: Site) -> str:
    if not site.container.image or site.container.runtime != "apptainer":
        return ""
    words = ["apptainer", "exec", *["--nv"] * bool(job.gpus_per_rank)]
    words += [word for mount in (str(job.run.absolute()), *site.container.mounts) for word in ("--bind", mount)]
    return " ".join(_inner(word, job) for word in [*words, site.container.image]) + " \\\n      "


def _directive(path: str, pattern: str) -> str:
    """A file in an #SBATCH line: in a pattern % begins a field, so in a path it is doubled; spaces end an option."""
    whole = path.replace("%", "%%") + pattern
    return f'"{whole}"' if re.search(r"\s", whole) else whole


def _submitted(said: str) -> str:
    """The id in what `sbatch --parsable` prints: `17`, or `17;cluster`."""
    id = said.strip().split(";")[0]
    if not re.fullmatch(r"\d+", id):
        raise Refused(f"sbatch gave no job id, but {said!r}")
    return id


def _environment(text: str) -> dict[str, str]:
    """This process's, without what would override a line of the script, or belongs to a job that this is a step of."""
    others = {"TIME": "TIMELIMIT", "MEM": "MEM_PER_NODE", "ARRAY": "ARRAY_INX"}
    options = [name.upper().replace("-", "_") for name in re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)]
    ours = {f"SBATCH_{others.get(name, name)}" for name in options} | {"SBATCH_NO_REQUEUE", "SBATCH_REQUEUE"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours and (name == "SLURM_CONF" or not name.startswith("SLURM_"))
    }


def _file_system(run: Path) -> tuple[Path, str]:
    """(mount point, type) of what a folder lies on, or will lie on."""
    there = run.absolute()
    while not there.exists():
        there = there.parent
    there = there.resolve()
    found = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if there.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
            found = point, after.split()[0]
    return found


def _local(run: Path) -> str | None:
    """In words, what a folder lies on that no other machine can see; None where there is no knowing."""
    point, kind = _file_system(run)
    if kind in MEMORY_FILES:
        return f"{point} in this machine's memory ({kind})"
    own = next((folder for folder in OWN_FOLDERS if run.absolute().is_relative_to(folder)), None)
    return None if own is None or NETWORK_FILES.search(kind) else f"{own} ({kind})"


def _unsure(run: Path) -> str | None:
    point, kind = _file_system(run)
    return None if NETWORK_FILES.search(kind) else f"{point} ({kind}), which looks like this machine's own"
