"""A run whose shards come over http is, bit for bit, the run that has them on its disk; also killed and resumed."""

import os
import re

import pytest

from tests.conftest import CommandLine, kill_rank
from tests.data.fault_server import Server, failing
from trainer import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SETTINGS = ("data.tries=4", "data.timeout_s=30")


@pytest.fixture
def server(luban: CommandLine):
    served = Server(luban.home / "datasets" / "tiny")
    yield served
    served.close()


def test_a_run_over_http_that_is_killed_and_goes_on_equals_the_local_one_bitwise(
    straight: CommandLine, server: Server
) -> None:
    server.faults[r"train.*\.tar"] = failing(1)  # each shard's first request fails
    url = server.url.replace("http://", "http://${STREAM_USER}:${STREAM_PASSWORD}@")
    straight.environment |= {"STREAM_USER": "reader", "STREAM_PASSWORD": "hunter2"}
    process = straight.start_pretrain("streamed", f"data.dataset={url}", *SETTINGS)
    events = straight.wait_for("streamed", 1, lambda event: event["event"] == "step" and event["step"] >= 11)
    kill_rank(events, 1)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    run = straight.run("streamed")
    assert len(record.load(run).attempts) == 2
    text = straight("verify", "streamed", "--against", "straight")
    for name in ("weights", "moments exp_avg_sq", "loss of each step", "grad_norm of each step"):
        assert f"ok   {name}" in text, text
    assert "everything holds" in straight("verify", "streamed")
    assert "texts" in straight("data", "trace", "streamed", "--step", "3")
    logs = "".join(path.read_text() for path in (run / "logs").rglob("*.log"))
    assert re.search(r"train-\d+\.tar from http://\$\{STREAM_USER\}.*500.*try 2 of 4", logs)
    for folder, _, files in os.walk(run):
        for file in files:
            with open(os.path.join(folder, file), "rb") as held:  # noqa: PTH118, PTH123
                assert b"hunter2" not in held.read(), file
    cached = list((straight.home / "cache").glob("tiny-*/train-*.tar"))
    assert cached


def test_a_remote_dataset_is_inspected_and_traced_and_a_mistaken_url_ends_before_the_run(
    straight: CommandLine, server: Server
) -> None:
    text = straight("data", "inspect", server.url)
    assert server.url in text and "train" in text
    refused = straight.pretrain("nowhere", f"data.dataset={server.url}/sub?x={{file}}", code=2)
    assert "dataset.json" in refused and "404" in refused
    assert not (straight.run("nowhere") / "attempts").exists()
    secret = straight.pretrain("secret", "data.dataset=https://me:hunter2@host/data", code=2)
    assert "hunter2" not in secret and "${NAME}" in secret
    small = straight.pretrain("small", f"data.dataset={server.url}", "data.cache_gb=0.00001", code=2)
    assert "data.cache_gb is 1e-05" in small and "take up to" in small
    server.faults[".*"] = failing(10**9)
    gone = straight.pretrain("gone", f"data.dataset={server.url}", "data.tries=2", code=1)
    assert "dataset.json" in gone and "tried 2 times" in gone
