"""Ray inside one Slurm job, as `luban cluster render` writes it: python -m tests.bench.symmetric_run

A real Slurm of three nodes, each with a network, processes and memory of its own, is given the very script. Its command
asks Ray for two GPUs on each of three nodes at once, and says what it was given. Too slow for a test: three cold starts
of Ray, on as many cores as there are.
"""

import sys
import tempfile
import time
from pathlib import Path

from cluster.provision import ray_on_slurm
from cluster.provision.cluster_file import Cluster, Setup, Shared, Slurm, Workers
from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.namespaced import Namespaced

NODES, CPUS, GPUS = 3, 2, 2
PATIENCE_S = 600
ASK = f"""
import ray
from ray.util.placement_group import placement_group
ray.init("auto", log_to_driver=False)
group = placement_group([{{"GPU": {GPUS}}}] * {NODES}, strategy="STRICT_SPREAD")
assert group.wait(120)
print("given", sum(node["Alive"] for node in ray.nodes()), "nodes,", ray.cluster_resources()["GPU"], "GPUs")
"""


def main() -> int:
    """Run the script on a Slurm of its own and print what came of it; 0 where it was given what it asked for."""
    Path("/tmp/ray").mkdir(exist_ok=True)  # of which each node gets its own
    with tempfile.TemporaryDirectory(prefix="luban-") as name:
        folder = Path(name)
        cluster = Cluster(
            name="night",
            provider="slurm",
            slurm=Slurm(minutes=20),
            shared=Shared(path=name),
            workers=(Workers(cpus=CPUS, gpus=GPUS, max=NODES),),
            setup=Setup(environment=sys.prefix),
        )
        script, output = folder / "night.sbatch", folder / "output"
        script.write_text(ray_on_slurm.render(cluster, ("python", "-c", ASK)))
        with Namespaced(folder / "slurm", Shape(NODES, CPUS, GPUS), own=("/dev/shm", "/tmp/ray")) as slurm:
            began = time.monotonic()
            job = slurm("sbatch", "--parsable", f"--output={output}", str(script)).strip()
            ended = slurm.wait_for_job(job, "COMPLETED", "FAILED", "TIMEOUT", timeout=PATIENCE_S)
            seconds = time.monotonic() - began
        given = f"given {NODES} nodes, {NODES * GPUS:.1f} GPUs" in output.read_text()
        if not given:
            print(output.read_text())
        asked = f"{NODES} nodes of {GPUS} GPUs"
        print(f"{asked}: {ended['JobState']}, {'as asked' if given else 'NOT AS ASKED'}, {seconds:.0f} s")
        return 0 if given and ended["JobState"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
