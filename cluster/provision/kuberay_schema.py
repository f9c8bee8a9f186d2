"""The fields of KubeRay's API (ray.io/v1, 1.5.1 and newer) and of pods that Luban renders, as JSON Schema.

The API server itself drops a field whose name is mistyped without a word: a GPU limit that is gone, a token mode that
is off. Here an unknown field is an error. `luban cluster check FILE --crd CRD.yaml` checks against the whole
definition of the operator in use.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: dict[str, Any] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(entry: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": entry, "minItems": least}


RESOURCES = _object(
    {"cpu": QUANTITY},
    {"memory": QUANTITY, "ephemeral-storage": QUANTITY, "nvidia.com/gpu": QUANTITY},
)
CONTAINER = _object(
    {
        "name": NAME,
        "image": TEXT,
        "resources": _object({"limits": RESOURCES, "requests": RESOURCES}),
        "volumeMounts": _list(_object({"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}})),
    },
    {"env": _list(_object({"name": TEXT, "value": {"type": "string"}}))},
)
VOLUME = {
    "oneOf": [
        _object({"name": NAME, "emptyDir": _object({"medium": {"const": "Memory"}}, {"sizeLimit": QUANTITY})}),
        _object({"name": NAME, "persistentVolumeClaim": _object({"claimName": NAME})}),
    ]
}
POD = _object(
    {
        "spec": _object(
            {"containers": _list(CONTAINER), "volumes": _list(VOLUME)},
            {
                "nodeSelector": TEXTS,
                "tolerations": _list(_object({"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}})),
            },
        )
    }
)
CLUSTER_SPEC = _object(
    {
        "rayVersion": TEXT,
        "authOptions": _object({"mode": {"const": "token"}}),
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": _object(
            {"idleTimeoutSeconds": COUNT, "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]}}
        ),
        "headGroupSpec": _object({"rayStartParams": TEXTS, "template": POD}),
        "workerGroupSpecs": _list(
            _object(
                {
                    "groupName": NAME,
                    "replicas": COUNT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": TEXTS,
                    "template": POD,
                }
            )
        ),
    }
)
JOB_SPEC = _object(
    {
        "entrypoint": TEXT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": CLUSTER_SPEC,
    }
)
_METADATA = _object({"name": NAME, "namespace": NAME})


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object({"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": _METADATA, "spec": spec})


MANIFEST: dict[str, Any] = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"enum": ["RayCluster", "RayJob"]}},
    "allOf": [
        {"if": {"properties": {"kind": {"const": kind}}}, "then": _resource(kind, spec)}
        for kind, spec in (("RayCluster", CLUSTER_SPEC), ("RayJob", JOB_SPEC))
    ],
}
"""Of one manifest."""
