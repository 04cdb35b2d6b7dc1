"""What of KubeRay's RayJob Leash writes, as a JSON schema that forbids every other key.

Written by reading the CRD `ray.io_rayjobs.yaml` of KubeRay v1.7.0 (`ray.io/v1`). Pod templates are Kubernetes' own,
and are checked as Pods by `kubernetes-validate`; they are `object` here. Of the operator's further checks
(`validation.go`), those that a value of ours could break are in it too.
"""

from typing import Any


def _strict(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _integer(minimum: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "maximum": 2**31 - 1}


TEXT = {"type": "string", "minLength": 1}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
"""A DNS-1035 label, with room for what the operator appends to a RayJob's name."""
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = _strict("metadata spec", metadata=_strict("labels", labels=TEXTS), spec={"type": "object"})

DELETION_RULE = {
    **_strict(
        "policy condition",
        # DeleteWorkers is refused where the autoscaler runs.
        policy={"enum": ["DeleteCluster", "DeleteSelf", "DeleteNone"]},
        condition={
            **_strict(
                "",
                jobStatus={"enum": ["SUCCEEDED", "FAILED"]},
                jobDeploymentStatus={"enum": ["Failed"]},
                ttlSeconds=_integer(0),
            ),
            "oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}],
        },
    )
}

WORKER_GROUP = _strict(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName={**NAME, "maxLength": 63},
    replicas=_integer(0),
    minReplicas=_integer(0),
    maxReplicas=_integer(0),
    idleTimeoutSeconds=_integer(0),  # with the autoscaler's version v2 only
    priority=_integer(0),  # with Ray from 2.56 on, and version v2, only
    rayStartParams=TEXTS,
    template=TEMPLATE,
)

CLUSTER = _strict(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion={"type": "string", "pattern": r"^2\.(5[6-9]|[6-9]\d)\.\d+$"},
    authOptions=_strict("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"const": True},
    autoscalerOptions=_strict(
        "version",
        version={"const": "v2"},
        idleTimeoutSeconds=_integer(0),
        securityContext={"type": "object"},
        resources=_strict("", requests=TEXTS, limits=TEXTS),
    ),
    headGroupSpec=_strict("template", rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP, "minItems": 1},
)

RAYJOB = _strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_strict("name namespace", name=NAME, namespace=NAME, labels=TEXTS),
    spec=_strict(
        "entrypoint submissionMode rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"const": "SidecarMode"},  # with it, a template for the submitter is refused
        backoffLimit=_integer(0),
        preRunningDeadlineSeconds=_integer(1),
        deletionStrategy=_strict(
            "deletionRules", deletionRules={"type": "array", "items": DELETION_RULE, "minItems": 1}
        ),
        rayClusterSpec=CLUSTER,
    ),
)
