"""Ray's autoscaler over node types that we rendered, all nodes on this machine; run by test_autoscaler.py.

The head is started by the very command that `ray up` would run on a cloud's head, with the token where it would lie.
Swapped is the provider alone: Ray's fake one starts a raylet where a cloud would start a machine. What is asked of
this module's process is that it has a network, processes and a home of its own, so that nothing of it stays.

Prints one JSON line an event: what was asked for, how many nodes and GPUs were there after it, and after how long.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.autoscaler._private.util import prepare_config
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.provision import ray_launcher
from cluster.provision.cluster_file import read

PATIENCE_S = 120
FAKE = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,  # or it never finds the nodes that it started
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
FAKE_HEAD = "ray.head.default"


def with_fake_nodes(config: dict) -> dict:
    """A configuration for the head whose nodes are raylets on this machine."""
    prepared = prepare_config(config) | {"provider": FAKE, "head_node_type": FAKE_HEAD, "cluster_synced_files": []}
    types = prepared["available_node_types"]
    types[FAKE_HEAD] = types.pop("head")
    for kind in types.values():
        kind["resources"]["object_store_memory"] = 80 * 2**20
    return prepared


def alive() -> tuple[int, float]:
    """Nodes and GPUs that are there."""
    return sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources().get("GPU", 0)


def until(asked: str, holds: Callable[[], bool]) -> None:
    """Wait for it, and report."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < PATIENCE_S, f"{asked}: {alive()}"
        time.sleep(0.2)
    nodes, gpus = alive()
    print(json.dumps({"asked": asked, "nodes": nodes, "gpus": gpus, "seconds": time.monotonic() - began}), flush=True)


def main(file: Path) -> None:
    """Bring up what is asked for, and see the idle nodes go."""
    cluster, home = read(file), Path.home()
    token = home / ".luban" / cluster.name / "token"
    config = ray_launcher.config(cluster, token, None)
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(with_fake_nodes(config)))
    start = config["head_start_ray_commands"][-1]
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    subprocess.run(["bash", "-c", start], env=os.environ | fake, check=True, stdout=subprocess.DEVNULL)
    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    until("nothing", lambda: alive()[0] == 1)
    group = placement_group([{"GPU": 2, "CPU": 1}] * 2, strategy="STRICT_SPREAD")
    until("2 x 2 GPUs", lambda: group.wait(0.1))
    remove_placement_group(group)
    until("nothing any more", lambda: alive()[0] == 1)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
