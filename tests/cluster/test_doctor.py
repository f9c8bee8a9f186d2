"""From facts to verdicts: each thing that can be amiss is planted alone in healthy facts, and is found alone."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.doctor.judge import document, failed, judge, needs, table
from cluster.doctor.verdict import Facts, Needs, Verdict
from trainer.recipe import Recipe

NODES, PER_NODE = 2, 2
NEEDS = Needs(ranks=NODES * PER_NODE, gpus_per_rank=1, memory=8e9, disk=1e9)


def device(index: int) -> Facts:
    return {
        "index": index, "name": "NVIDIA H100", "uuid": f"GPU-{index}", "memory": 80 << 30, "used": 1 << 20, "ecc": True,
        "ecc_errors": 0, "sm_mhz": 1980, "sm_most_mhz": 1980, "celsius": 40, "held_down": [],
    }  # fmt: skip


def healthy(nodes: int = NODES, per_node: int = PER_NODE) -> list[Facts]:
    """Facts of probes that found nothing amiss."""
    size = nodes * per_node
    found = []
    for rank in range(size):
        node, local = divmod(rank, per_node)
        facts: Facts = {
            "format": "luban-probe", "version": 1, "rank": rank, "local_rank": local, "world": size,
            "host": f"n{node + 1}", "pid": 100 + rank, "time": 0.0, "stage": "done", "cut": False,
            "versions": {"python": "3.12", "torch": "2.13.0", "deepspeed": "0.19.8", "luban": "0.1.0", "code": "c0de"},
            "torch": {"gpus": per_node, "nccl": "2.27.3"},
            "meeting": {"at": "10.0.0.1:29500", "seconds": 2.0, "error": None},
            "speed": {
                "device": "NVIDIA H100", "backend": "nccl", "compute": 6e14, "all_reduce": [1 << 28, 0.002],
                "all_gather": [1 << 28, 0.001], "links": [[rank, other, 40e9] for other in range(rank + 1, size)],
            },
        }  # fmt: skip
        if local == 0:
            facts |= {
                "machine": {
                    "cpus": 64, "memory": 1 << 40, "available": 900 << 30, "shm": 500 << 30, "files": 1 << 20,
                },
                "gpus": {"devices": [device(index) for index in range(per_node)], "driver": "570.1", "problem": None},
                "folder": {
                    "path": "/shared/runs/.doctor-1", "seen": True, "nonce": "x", "clock_s": 0.002, "free": 10**13,
                    "total": 10**14,
                },
                "shared": {"unread": []}, "unreached": [], "disk": {"bytes": 1 << 26, "seconds": 0.05},
            }  # fmt: skip
            if rank:
                facts["clock"] = {"ahead_s": 0.003, "error_s": 0.0001}
        found.append(facts)
    found[0]["wandb"] = {"mode": "auto", "url": "https://api.wandb.ai", "key": True, "error": None}
    return found


def amiss(facts: list[Facts], wanted: Needs = NEEDS) -> list[Verdict]:
    """The verdicts that are not ok."""
    return [verdict for verdict in judge(facts, wanted) if verdict.level != "ok"]


def test_healthy_machines_have_every_check_and_no_complaint() -> None:
    found = judge(healthy(), NEEDS)
    assert [verdict.check for verdict in found] == [
        "ranks", "versions", "gpus", "gpu health", "machines", "disk", "shared folder", "clocks", "network",
        "bandwidth", "slow ranks", "wandb",
    ]  # fmt: skip
    assert {verdict.level for verdict in found} == {"ok"} and not any(verdict.mend for verdict in found)
    said = {verdict.check: verdict.found for verdict in found}
    assert said["gpus"] == "2 a node, NVIDIA H100 80 GiB, driver 570.1"
    assert said["bandwidth"].startswith("all-reduce 201GB/s, all-gather 201GB/s of bus bandwidth (nccl, 256 MiB)")
    assert said["disk"] == "9.09 TiB free, written and synced at 1.34GB/s, 2 nodes at once"


def set_(rank: int, *path: Any, to: Any) -> Callable[[list[Facts]], None]:
    """Plant a value."""

    def plant(facts: list[Facts]) -> None:
        place: Any = facts[rank]
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = to

    return plant


LOST = {"at": "10.0.0.1:29500", "seconds": 120.0, "error": "Connection refused"}
TOUCHED = {"rank": 2, "at": "10.0.0.2:41234", "error": "timed out"}


@pytest.mark.parametrize(
    ("plant", "check", "level", "found", "mend"),
    [
        (set_(3, "crashed", to="ValueError: x"), "ranks", "fail", "rank 3 on n2 fell: ValueError: x", "log"),
        (set_(1, "stage", to="looked"), "ranks", "fail", "rank 1 on n1 ended in the middle, after a look at the other "
         "nodes", "who fell first"),
        (lambda facts: facts.pop(3), "ranks", "fail", "nothing came from rank 3 of 4", "is the folder shared"),
        (set_(2, "meeting", to=LOST), "ranks", "fail", "rank 2 on n2 didn't reach rank 0 at 10.0.0.1:29500 in 120 s: "
         "Connection refused", "let n2 connect to 10.0.0.1:29500"),
        (set_(0, "meeting", to=LOST | {"absent": [2, 3]}), "ranks", "fail", "nothing heard of ranks 2, 3", "port"),
        (set_(2, "versions", "torch", to="2.12.0"), "versions", "fail", "torch: 2.12.0 on n2; 2.13.0 on n1, n2",
         "the same on all nodes"),
        (set_(1, "versions", "code", to="beef"), "versions", "fail", "the code of luban: beef on n1; c0de on n1, n2",
         "share one environment"),
        (set_(2, "torch", "nccl", to="2.20.5"), "versions", "fail", "nccl: 2.20.5 on n2; 2.27.3 on n1, n2", "same"),
        (set_(2, "torch", "gpus", to=1), "gpus", "fail", "n2: torch sees 1 GPU(s) (the driver shows 2), and its ranks "
         "need 2", "torch built for this driver"),
        (set_(2, "gpus", "driver", to="535.2"), "gpus", "warn", "driver 535.2, 570.1", "update the older driver"),
        (set_(0, "gpus", "devices", 1, "name", to="NVIDIA A100"), "gpus", "warn", "NVIDIA A100 80 GiB, NVIDIA H100 80",
         "slowest"),
        (set_(0, "gpus", "devices", 1, "ecc_errors", to=7), "gpu health", "fail", "GPU 1 of n1: 7 uncorrected",
         "reset it"),
        (set_(2, "gpus", "devices", 0, "held_down", to=["hardware thermal slowdown"]), "gpu health", "warn",
         "GPU 0 of n2: clocks held down by hardware thermal slowdown (1980 of 1980 MHz)", "cooling"),
        (set_(2, "gpus", "devices", 0, "used", to=60 << 30), "gpu health", "warn", "60 GiB of 80 GiB in use", "end it"),
        (set_(2, "machine", "available", to=9 << 30), "machines", "fail", "n2: 9 GiB of memory are free, its ranks ask "
         "for 14.9 GiB", "launch.memory_gb"),
        (set_(2, "machine", "cpus", to=1), "machines", "warn", "n2: 1 CPU(s) for 2 thread(s)", "launch.threads"),
        (set_(2, "machine", "shm", to=64 << 20), "machines", "warn", "/dev/shm has 64 MiB", "--shm-size"),
        (set_(2, "machine", "files", to=1024), "machines", "warn", "may open 1024 files", "ulimit -n"),
        (set_(0, "folder", "free", to=5e8), "disk", "fail", "n1: 477 MiB are free, and the checkpoints to be kept take "
         "about 954 MiB", "checkpoint.keep_last"),
        (set_(2, "folder", "error", to="Read-only file system"), "disk", "fail", "n2 can't write /shared/runs/.doctor-1"
         ": Read-only file system", "writable"),
        (set_(2, "disk", to={"error": "No space left on device"}), "disk", "fail", "No space left", "make room"),
        (set_(2, "disk", "seconds", to=10.0), "disk", "warn", "n2 writes 6.71MB/s", "faster file system"),
        (set_(2, "folder", "seen", to=False), "shared folder", "fail", "/shared/runs/.doctor-1 is not there on n2",
         "all nodes mount"),
        (set_(0, "shared", "unread", to=[2]), "shared folder", "fail", "n1 doesn't read in /shared/runs/.doctor-1 what "
         "n2 wrote there", "all nodes mount"),
        (set_(2, "clock", "ahead_s", to=-3.0), "clocks", "warn", "the clock of n2 is 3 s behind rank 0's", "chrony"),
        (set_(2, "clock", "ahead_s", to=60.0), "clocks", "fail", "the clock of n2 is 60 s ahead of rank 0's: "
         "heartbeats would look dead", "chrony"),
        (set_(2, "folder", "clock_s", to=-30.0), "clocks", "fail", "the file system's clock is 30 s behind that of n2",
         "file server"),
        (set_(0, "unreached", to=[TOUCHED]), "network", "fail", "n1 can't connect to n2 at 10.0.0.2:41234: timed out",
         "ip_local_port_range"),
        (set_(3, "speed", "compute", to=1e14), "slow ranks", "warn", "rank 3 on n2 computes at 17% of the usual speed",
         "leave the node out"),
        (set_(1, "speed", "links", 0, 2, to=1e9), "slow ranks", "warn", "the link between rank 1 on n1 and rank 2 on "
         "n2 is slow: 1GB/s, usual are 40GB/s", "cables"),
        (set_(0, "wandb", "error", to="api.wandb.ai can't be reached (timed out)"), "wandb", "warn", "offline: "
         "api.wandb.ai can't be reached", "wandb sync"),
        (set_(0, "wandb", to={"mode": "online", "url": "u", "key": False, "error": None}), "wandb", "warn",
         "no key is configured", "wandb login"),
    ],
)  # fmt: skip
def test_one_thing_amiss_is_named_with_its_place_and_its_mend_and_nothing_else_is(
    plant: Callable[[list[Facts]], object], check: str, level: str, found: str, mend: str
) -> None:
    facts = copy.deepcopy(healthy())
    plant(facts)
    (verdict,) = amiss(facts)
    assert (verdict.check, verdict.level) == (check, level)
    assert found in verdict.found and mend in verdict.mend


def test_a_rank_that_reached_nobody_is_to_blame_and_not_those_that_waited_for_it() -> None:
    facts = healthy()[:3]
    facts[0]["stage"] = facts[1]["stage"] = facts[2]["stage"] = "alone"
    for each in facts:
        for stage in ("speed", "shared", "unreached", "disk", "clock"):
            each.pop(stage, None)
    facts[0]["meeting"] = facts[1]["meeting"] = LOST | {"error": "Socket Timeout", "absent": [2]}
    facts[1]["meeting"] = {"at": "10.0.0.1:29500", "seconds": 3.0, "error": None}
    facts[2]["meeting"] = LOST
    assert [verdict.found for verdict in amiss(facts, Needs(3))] == [
        "rank 2 on n2 didn't reach rank 0 at 10.0.0.1:29500 in 120 s: Connection refused"
    ]


def test_machines_without_gpus_are_well_unless_a_recipe_asks_for_some() -> None:
    facts = healthy()
    for each in facts:
        each["torch"] = {"gpus": 0, "nccl": None}
        if "gpus" in each:
            each["gpus"] = {"devices": [], "driver": None, "problem": None}
    none = Needs(ranks=4)
    assert not amiss(facts, none)
    assert any("none on any node" in verdict.found for verdict in judge(facts, none))
    (verdict,) = amiss(facts)
    assert (verdict.check, verdict.level) == ("gpus", "fail")
    assert "n1: torch sees 0 GPU(s), and its ranks need 2" in verdict.found


def test_more_ranks_than_gpus_fail_although_the_recipe_asks_for_none() -> None:
    facts = healthy()
    facts[2]["torch"] = {"gpus": 1, "nccl": "2.27.3"}
    assert [verdict.check for verdict in amiss(facts, Needs(ranks=4))] == ["gpus"]


def test_a_cut_network_says_that_speeds_were_not_measured() -> None:
    facts = healthy()
    for each in facts:
        each["cut"] = True
        del each["speed"]
    facts[0]["unreached"] = [TOUCHED]
    assert [(verdict.check, verdict.level) for verdict in amiss(facts)] == [("network", "fail"), ("bandwidth", "warn")]


def test_hosts_that_share_a_name_are_told_apart_by_their_first_ranks() -> None:
    facts = healthy()
    for each in facts:
        each["host"] = "vm"
    facts[2]["folder"]["seen"] = False
    assert "is not there on vm (rank 2)" in amiss(facts)[0].found


def test_no_facts_at_all_fail() -> None:
    (verdict,) = judge([], NEEDS)
    assert (verdict.check, verdict.level) == ("ranks", "fail")
    assert "no facts came from any of 4 rank(s)" in verdict.found


@pytest.mark.parametrize("stage", ["versions", "machine", "folder", "meeting", "shared", "disk", "speed"])
def test_probes_that_fell_at_any_stage_are_judged_by_what_they_left(stage: str) -> None:
    facts = healthy()
    order = ["versions", "machine", "gpus", "folder", "wandb", "torch", "meeting", "shared", "unreached", "clock",
             "cut", "disk", "speed"]  # fmt: skip
    for each in facts:
        for name in order[order.index(stage) :]:
            each.pop(name, None)
        each["crashed"] = "OSError: gone"
    assert failed(judge(facts, NEEDS))


def test_a_warning_refuses_nothing_and_a_failure_does() -> None:
    facts = healthy()
    set_(2, "machine", "cpus", to=1)(facts)
    assert not failed(judge(facts, NEEDS))
    set_(2, "clock", "ahead_s", to=60.0)(facts)
    assert failed(judge(facts, NEEDS))


def test_the_table_has_a_line_a_check_with_its_mend_under_it_and_control_characters_as_dots() -> None:
    text = table([Verdict("disk", "ok", "fine"), Verdict("gpu health", "fail", "bad \x1b[2J", "mend it")])
    assert text.splitlines() == [
        "disk        ok    fine",
        "gpu health  fail  bad ·[2J",
        "                  -> mend it",
        "1 ok, 0 warn, 1 fail",
    ]


def test_the_document_holds_verdicts_and_facts_as_json() -> None:
    facts = healthy()
    found = json.loads(json.dumps(document(judge(facts, NEEDS), facts, 3.21)))
    assert (found["format"], found["version"], found["ok"], found["seconds"]) == ("luban-doctor", 1, True, 3.2)
    assert len(found["verdicts"]) == 12 and len(found["ranks"]) == 4


def test_a_recipe_needs_room_for_the_checkpoints_that_it_keeps() -> None:
    plain = needs(Recipe.model_validate({"launch": {"ranks": 4, "nodes": 2, "gpus_per_rank": 1, "memory_gb": 8}}))
    assert (plain.ranks, plain.gpus_per_rank, plain.memory) == (4, 1, 8e9)
    more = needs(Recipe.model_validate({"checkpoint": {"keep_last": 6}}))
    assert more.disk == pytest.approx(plain.disk * 2)  # 2 kept, the best and a new one, against 6 and those two
    two = needs(Recipe.model_validate({"objective": {"kind": "adversarial"}}))
    assert plain.disk < two.disk < 2 * plain.disk  # the discriminator has two layers
    away = {"checkpoint": {"store": "file:///backup", "store_role": "primary"}}
    assert needs(Recipe.model_validate(away)).disk == 0
