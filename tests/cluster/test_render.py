"""What is rendered for a cluster: golden files, the schemas, and the promises that a golden file could lose unseen."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.provision import apply as provision
from cluster.provision import kuberay, ray_launcher, ray_on_slurm
from cluster.provision.cluster_file import Cluster, read
from data.errors import UserError

GOLDEN = Path(__file__).with_name("golden") / "clusters"
TOKEN, SOURCE = Path("/home/me/clusters/NAME/token"), Path("/opt/luban")
COMMAND = ("luban", "pretrain", "own", "name=two words")
LAUNCHED = ("hosts", "aws", "gcp")


def cluster(name: str) -> Cluster:
    """One of the golden clusters."""
    return read(GOLDEN / f"{name}.yaml")


def tree(name: str) -> dict[str, Any]:
    """What `ray up` is given for it."""
    return ray_launcher.config(cluster(name), TOKEN, SOURCE)


RENDERED = {
    "hosts.ray.yaml": lambda: ray_launcher.render(cluster("hosts"), TOKEN, SOURCE),
    "aws.ray.yaml": lambda: ray_launcher.render(cluster("aws"), TOKEN, SOURCE),
    "gcp.ray.yaml": lambda: ray_launcher.render(cluster("gcp"), TOKEN, SOURCE),
    "kubernetes.cluster.yaml": lambda: kuberay.render(cluster("kubernetes")),
    "kubernetes.job.yaml": lambda: kuberay.render(cluster("kubernetes"), COMMAND),
    "slurm.sbatch": lambda: ray_on_slurm.render(cluster("slurm"), COMMAND),
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text_is_the_golden_one(name: str) -> None:
    """`python -m tests.cluster.test_render` writes them anew; then the change is to be read line by line."""
    assert RENDERED[name]() == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_own_schema_takes_what_is_rendered(name: str) -> None:
    ray_launcher.valid(tree(name))


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_typo_in_what_is_rendered_is_caught_by_rays_schema(name: str) -> None:
    wrong = tree(name)
    wrong["setup_comands"] = wrong.pop("setup_commands")
    with pytest.raises(UserError, match="setup_comands"):
        ray_launcher.valid(wrong)


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_are_closed_to_strangers(name: str) -> None:
    starts = [line for key in ("head", "worker") for line in tree(name)[f"{key}_start_ray_commands"] if "start" in line]
    assert len(starts) == 2
    for line in starts:
        assert "0.0.0.0" not in line
        assert "RAY_AUTH_MODE=token" in line and "RAY_AUTH_TOKEN_PATH=$HOME/.luban/" in line
        assert "RAY_enable_autoscaler_v2=0" in line
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("chmod 600" in line and "token" in line for line in tree(name)["setup_commands"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_torch_is_installed_first_and_pinned(name: str) -> None:
    installs = [line for line in tree(name)["setup_commands"] if "pip install" in line]
    assert "torch==2.13.0" in installs[0] and all("torch" not in line for line in installs[1:])


def test_pip_installs_every_package() -> None:
    source = Path(__file__).parents[2]
    packages = tomllib.loads((source / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = {name.partition(".")[0] for name in packages["packages"]}
    written = {
        file.parent.relative_to(source).as_posix() for top in tops for file in source.glob(f"{top}/**/__init__.py")
    }
    assert {name.replace("/", ".") for name in written} == {*packages["packages"]} - {*packages["package-dir"]}


def test_what_is_shipped_is_all_that_pip_installs_luban_from() -> None:
    source = Path(__file__).parents[2]
    project = tomllib.loads((source / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]
    folders = {packages.get("package-dir", {}).get(name, name.partition(".")[0]) for name in packages["packages"]}
    files = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert set(ray_launcher.SHIPPED) == folders | files
    assert all((source / part).exists() for part in ray_launcher.SHIPPED)


def test_a_worker_proves_that_it_sees_the_heads_folder() -> None:
    mark = "/mnt/luban/.luban-lab"
    assert any(line.endswith(f"> {mark}") for line in tree("hosts")["head_setup_commands"])
    assert any(line.startswith(f"test -e {mark} ||") for line in tree("hosts")["worker_setup_commands"])


@pytest.mark.parametrize("command", [(), COMMAND])
def test_our_schema_takes_the_manifests(command: tuple[str, ...]) -> None:
    kuberay.valid(kuberay.manifest(cluster("kubernetes"), command))


def misspell(held: Any, path: tuple[str | int, ...]) -> None:
    """Change the last name of a path, in place."""
    *parents, last = path
    for part in parents:
        held = held[part]
    held[f"{last}x"] = held.pop(last)


POD = ("template", "spec", "containers", 0)


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "authOptions"),
        ("spec", "authOptions", "mode"),
        ("spec", "workerGroupSpecs", 0, "maxReplicas"),
        ("spec", "workerGroupSpecs", 0, *POD, "resources", "limits", "nvidia.com/gpu"),
        ("spec", "headGroupSpec", *POD, "volumeMounts", 0, "mountPath"),
        ("metadata", "namespace"),
    ],
)
def test_a_typo_in_a_manifest_is_caught(path: tuple[str | int, ...]) -> None:
    manifest = kuberay.manifest(cluster("kubernetes"))
    misspell(manifest, path)
    with pytest.raises(UserError, match="does not fit"):
        kuberay.valid(manifest)


def definition(kind: str = "RayCluster") -> dict[str, Any]:
    """A CustomResourceDefinition as the API server writes it, of some of the fields."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    spec = {
        "type": "object",
        "properties": {
            "rayVersion": {"type": "string"},
            "authOptions": {
                "type": "object",
                "properties": {"mode": {"type": "string", "enum": ["disabled", "token"]}},
            },
            "enableInTreeAutoscaling": {"type": "boolean"},
            "autoscalerOptions": anything,
            "headGroupSpec": anything,
            "workerGroupSpecs": {"type": "array", "items": anything},
        },
    }
    whole = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec}
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": whole}}}
    return {"kind": "CustomResourceDefinition", "spec": {"names": {"kind": kind}, "versions": [version]}}


def test_a_definition_of_the_operator_in_use_is_checked_against(tmp_path: Path) -> None:
    crd, said = tmp_path / "crd.yaml", []
    crd.write_text(yaml.safe_dump(definition()))
    provision.check(GOLDEN / "kubernetes.yaml", crd, (), said.append)
    assert "is valid" in said[0]
    older = definition()
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["authOptions"]
    crd.write_text(yaml.safe_dump(older))
    with pytest.raises(UserError, match="authOptions"):
        provision.check(GOLDEN / "kubernetes.yaml", crd, (), said.append)
    crd.write_text(yaml.safe_dump(definition("RayJob")))
    with pytest.raises(UserError, match="the manifest is a RayCluster v1"):
        provision.check(GOLDEN / "kubernetes.yaml", crd, (), said.append)
    crd.write_text("a: b\n")
    with pytest.raises(UserError, match="is no CustomResourceDefinition"):
        provision.check(GOLDEN / "kubernetes.yaml", crd, (), said.append)


def luban(home: Path, *words: str, code: int, path: str | None = None) -> str:
    """The command line in a home of its own; returns stdout and stderr together."""
    variables = os.environ | {"LUBAN_HOME": str(home), "HOME": str(home), "RAY_AUTH_MODE": "disabled"}
    variables |= {"PATH": path} if path else {}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "luban", "cluster", *words],
        cwd=home,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == code and "Traceback" not in done.stdout, done.stdout
    return done.stdout


def test_dry_run_prints_what_would_be_applied_and_writes_nothing(tmp_path: Path) -> None:
    printed = luban(tmp_path, "up", str(GOLDEN / "hosts.yaml"), "--dry-run", code=0)
    assert printed == luban(tmp_path, "render", str(GOLDEN / "hosts.yaml"), code=0)
    assert yaml.safe_load(printed)["file_mounts"]["~/.luban/lab/token"] == str(tmp_path / "clusters" / "lab" / "token")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "package"), [("aws", "boto3"), ("gcp", "google-api-python-client")])
def test_a_missing_cloud_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setenv("LUBAN_HOME", str(tmp_path))
    monkeypatch.setattr(provision, "find_spec", lambda module: None)  # wherever it is installed
    with pytest.raises(UserError, match=f"pip install {package}"):
        provision.up(GOLDEN / f"{name}.yaml", True, False, print)
    assert not list(tmp_path.iterdir())


def test_kubernetes_without_kubectl_is_one_clear_error(tmp_path: Path) -> None:
    assert "needs kubectl" in luban(tmp_path, "up", str(GOLDEN / "kubernetes.yaml"), code=2, path="/nowhere")


def test_slurm_is_rendered_with_a_command_and_not_brought_up(tmp_path: Path) -> None:
    assert "-- COMMAND" in luban(tmp_path, "render", str(GOLDEN / "slurm.yaml"), code=2)
    assert "lives as long as its job" in luban(tmp_path, "up", str(GOLDEN / "slurm.yaml"), code=2)
    script = luban(tmp_path, "render", str(GOLDEN / "slurm.yaml"), "--", "python", "job.py", code=0)
    assert script.rstrip().endswith("-- python job.py")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", ["kubernetes", "slurm"])
@pytest.mark.parametrize("on", [("--on", "ray"), ("--on=ray=http://127.0.0.1:8265",)])
def test_a_command_that_only_submits_is_refused_where_the_cluster_ends_with_it(name: str, on: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="ends as soon as Ray has the run, and the cluster with it"):
        provision.render(GOLDEN / f"{name}.yaml", ("luban", "pretrain", "own", *on))
    stays = provision.render(GOLDEN / f"{name}.yaml", ("sh", "-c", "luban pretrain own --on ray && luban logs -f own"))
    assert "&& luban logs -f own" in stays


def test_a_key_that_is_missing_or_open_to_others_is_refused(tmp_path: Path) -> None:
    key, file = tmp_path / "id", tmp_path / "lab.yaml"
    file.write_text((GOLDEN / "hosts.yaml").read_text().replace("/home/me/.ssh/id_ed25519", str(key)))
    assert f"ssh.key {key} is missing" in luban(tmp_path, "up", str(file), code=2)
    key.write_text("a key\n")
    key.chmod(0o644)
    assert f"chmod 600 {key}" in luban(tmp_path, "up", str(file), code=2)
    assert not (tmp_path / "clusters" / "lab" / "token").exists()


def test_a_cluster_that_is_not_up_has_no_status(tmp_path: Path) -> None:
    assert "cluster lab is not up" in luban(tmp_path, "status", str(GOLDEN / "hosts.yaml"), code=2)
    assert "cluster lab is not up" in luban(tmp_path, "down", str(GOLDEN / "hosts.yaml"), code=0)


if __name__ == "__main__":
    for golden, text in RENDERED.items():
        (GOLDEN / golden).write_text(text())
