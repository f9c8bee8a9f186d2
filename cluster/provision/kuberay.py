"""A cluster file as KubeRay manifests: a RayCluster that stays, or a RayJob that lives as long as its command.

Authentication is `authOptions: {mode: token}`: KubeRay 1.5.1 and newer makes the token, keeps it in a Secret and
hands it to every pod, so none is rendered here. The dashboard listens on the pod's loopback, which `kubectl
port-forward` reaches; only under a RayJob does it listen to the cluster (behind the token), because the operator asks
it how the job stands.

Requests equal limits: a pod that is squeezed slows every rank of a step. /dev/shm is memory, half of the pod's, as
collectives inside a node and Ray's object store live there.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from shlex import join
from typing import Any

import yaml

from cluster.provision.cluster_file import Cluster, Head, Workers
from cluster.provision.kuberay_schema import MANIFEST
from data.errors import UserError

HEAD_CPUS, HEAD_MEMORY_GB = 2, 8
"""What the head's pod gets where the file doesn't say."""


def manifest(cluster: Cluster, command: Sequence[str] = ()) -> dict[str, Any]:
    """The tree for `kubectl apply`: a RayJob that runs `command`, or without one a RayCluster."""
    metadata = {"name": cluster.name, "namespace": cluster.kubernetes.namespace}
    spec = _cluster_spec(cluster, reachable=bool(command))
    if not command:
        return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}
    job = {
        "entrypoint": join(command),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,  # of the pods: idle GPUs cost what busy ones do, and the logs lie in the run
        "backoffLimit": 0,  # a run is started again by its own supervisor, which knows why it ended
        "rayClusterSpec": spec,
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job}


def render(cluster: Cluster, command: Sequence[str] = ()) -> str:
    """`manifest` as YAML."""
    return yaml.safe_dump(manifest(cluster, command), sort_keys=False, allow_unicode=True, width=10**6)


def valid(tree: dict[str, Any]) -> None:
    """Check a manifest by the fields of KubeRay's API that are rendered here. Raises UserError naming the first."""
    _check(tree, MANIFEST, "KubeRay's fields as Luban knows them")


def valid_by_crd(tree: dict[str, Any], crd: Path) -> None:
    """Check a manifest by a CustomResourceDefinition, such as KubeRay's ray.io_rayclusters.yaml.

    The API server drops fields that a definition doesn't know; here they are errors.

    Raises:
        UserError: the file is no definition of the manifest's kind and version, or the manifest doesn't fit it.
    """
    try:
        definition = yaml.safe_load(crd.read_text("utf-8"))
        kind, versions = definition["spec"]["names"]["kind"], definition["spec"]["versions"]
        schemas = {entry["name"]: entry["schema"]["openAPIV3Schema"] for entry in versions}
    except OSError as error:
        raise UserError(f"cannot read {crd}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"{crd} is no CustomResourceDefinition with a schema, such as KubeRay's") from None
    wanted = tree["apiVersion"].rpartition("/")[2]
    if kind != tree["kind"] or wanted not in schemas:
        raise UserError(f"{crd} defines {kind} {', '.join(schemas)}, and the manifest is a {tree['kind']} {wanted}")
    _check(tree, _strict(schemas[wanted]), str(crd))


def _check(tree: dict[str, Any], schema: dict[str, Any], source: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if problem := best_match(Draft202012Validator(schema).iter_errors(tree)):
        where = ".".join(str(part) for part in problem.absolute_path) or "the manifest"
        raise UserError(f"the manifest does not fit {source}: {where}: {problem.message}")


def _strict(schema: Any) -> Any:
    """OpenAPI as Kubernetes writes it, as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(held) for key, held in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("properties"), dict) and schema.get("x-kubernetes-preserve-unknown-fields") is not True:
        strict.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-embedded-resource") or "metadata" in schema["properties"]:
            # The API server fills in the definition of these by itself.
            strict["properties"] |= {"metadata": {"type": "object"}}
    return strict


def _cluster_spec(cluster: Cluster, reachable: bool) -> dict[str, Any]:
    head = cluster.head
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": round(cluster.idle_minutes * 60), "upscalingMode": "Default"},
        "headGroupSpec": {
            "rayStartParams": {
                "dashboard-host": "0.0.0.0" if reachable else "127.0.0.1",
                "num-gpus": "0",
                "disable-usage-stats": "true",
            },
            "template": _pod(cluster, head, "ray-head", 0),
        },
        "workerGroupSpecs": [
            {
                "groupName": kind.name,
                "replicas": kind.least,
                "minReplicas": kind.least,
                "maxReplicas": kind.most,
                "rayStartParams": {"num-cpus": str(kind.cpus), "num-gpus": str(kind.gpus or 0)},
                "template": _pod(cluster, kind, "ray-worker", kind.gpus or 0),
            }
            for kind in cluster.workers
        ],
    }


def _pod(cluster: Cluster, node: Head | Workers, name: str, gpus: int) -> dict[str, Any]:
    memory = node.memory_gb or (HEAD_MEMORY_GB if isinstance(node, Head) else None)
    resources = {"cpu": str(node.cpus or HEAD_CPUS)}
    resources |= {"memory": f"{memory}Gi"} if memory else {}
    resources |= {"ephemeral-storage": f"{node.disk_gb}G"} if node.disk_gb else {}
    resources |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    limit = {"sizeLimit": f"{max(1, memory // 2)}Gi"} if memory else {}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", **limit}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    container: dict[str, Any] = {
        "name": name,
        "image": cluster.image,
        "resources": {"limits": resources, "requests": dict(resources)},
    }
    if cluster.shared:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": cluster.shared.claim}})
        mounts.append({"name": "shared", "mountPath": cluster.shared.path})
        container["env"] = [{"name": "LUBAN_HOME", "value": cluster.shared.path}]
    container["volumeMounts"] = mounts
    spec: dict[str, Any] = {"containers": [container], "volumes": volumes}
    if node.node_selector:
        spec["nodeSelector"] = dict(node.node_selector)
    if node.tolerate:
        spec["tolerations"] = [{"key": key, "operator": "Exists"} for key in node.tolerate]
    return {"spec": spec}
