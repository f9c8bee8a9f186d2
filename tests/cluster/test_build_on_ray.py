"""A dataset built on a real Ray cluster of several nodes: the local build's bytes, whatever dies on the way."""

import time
from collections.abc import Iterator

import pytest

from data.build.build import build
from data.recipe import DatasetRecipe, Source, Split, TokenizerTraining
from data.settings import dump
from tests.data.build.test_build import digests
from tests.data.build.test_resume import files, vouched
from tests.data.conftest import english
from tests.ray_testbed.cluster import RayCluster, wait
from tests.ray_testbed.command_line import OnCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_S = 400


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    """Nodes 2 and 3 with a CPU each, beside the head with two."""
    home = tmp_path_factory.mktemp("home")
    with RayCluster(tmp_path_factory.mktemp("ray") / "cluster") as cluster:
        cluster.add(2)
        cluster.add(3)
        yield OnCluster(home, cluster)


@pytest.fixture(scope="module")
def recipe(ray: OnCluster) -> DatasetRecipe:
    """Some 13 MB in seven parts."""
    (folder := ray.home / "texts").mkdir()
    texts = [english(number, 9000) for number in range(50)]
    for number in range(300):
        (folder / f"{number:03d}.txt").write_text(f"{number} " * 2000 + texts[number % 50][number * 10 :])
    made = DatasetRecipe(
        name="made",
        sources=(Source(kind="folder", path=folder, name="made"),),
        split=Split(valid=0.2),
        tokenizer=TokenizerTraining(vocab_size=768, sample_bytes=200_000),
        shard_tokens=300_000,
    )
    (ray.home / "made.yaml").write_text(dump(made))
    return made


def test_a_build_on_ray_survives_a_node_and_its_driver_and_has_the_local_bytes(ray: OnCluster, recipe) -> None:
    out = ray.home / "out"
    command = ("data", "build", str(ray.home / "made.yaml"), "--out", str(out), "--on", "ray")
    first = ray.start(*command)
    wait(lambda: len(vouched(files(out))) >= 2 or first.poll() is not None, PATIENCE_S, "two parts")
    ray.cluster.kill(3)
    wait(lambda: len(vouched(files(out))) >= 4 or first.poll() is not None, PATIENCE_S, "two more, without node 3")
    assert first.poll() is None, first.communicate()[0]
    (driver,) = [each for each in ray.cluster.processes("cluster.ray.build") if "python" in each.name()][-1:]
    driver.kill()
    said, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 2, said
    assert "on Ray failed" in said
    time.sleep(2)  # what was under way ends with its job
    before = vouched(files(out))
    said = ray(*command, timeout=PATIENCE_S)
    assert "going on from what an interrupted build left" in said
    after = files(out)
    assert {name: after[name] for name in before if name in after} == {
        name: inode for name, inode in before.items() if name in after
    }
    assert "parts were finished before" in said
    local = build(recipe.model_copy(update={"workers": 1}), ray.home / "local")
    assert digests(out) == digests(local.folder)
    assert not list(ray.home.glob(".luban-data-*"))


def test_a_folder_that_a_node_does_not_share_is_one_clear_error(ray: OnCluster, recipe) -> None:
    (ray.home / "apart").mkdir()
    ray.cluster.add(5, blind=ray.home / "apart")
    said = ray(
        "data", "build", str(ray.home / "made.yaml"), "--out", str(ray.home / "apart" / "out"), "--on", "ray", code=2
    )
    assert "the node 127.0.0.5 of the Ray cluster has another" in said
    ray.cluster.kill(5)


def test_a_build_that_fails_on_ray_says_why(ray: OnCluster, recipe) -> None:
    few = ("split.valid=0.9999", "split.heldout=0.00009")
    words = ("data", "build", str(ray.home / "made.yaml"), *few, "--out", str(ray.home / "few"), "--on", "ray")
    said = ray(*words, code=2)
    assert "the split left none of the" in said
