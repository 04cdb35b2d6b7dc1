"""What manifests need to know besides the recipe. `deploy/helm/leash/values.schema.json` is made from this file."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from core.config import Section
from core.errors import UserError

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_CHARACTERS = 47
"""That KubeRay 1.7 takes as the name of a RayJob: it appends to it."""
DnsLabel = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME_CHARACTERS)]
"""A name of Kubernetes."""


class PodSize(Section):
    """What a pod requests, which is also its limit: a pod that may use more is the first to be evicted."""

    cpus: int | None = Field(default=None, ge=1)
    """CPU cores; left out: enough for the threads of all workers that the group is for."""
    gpus: int | None = Field(default=None, ge=0)
    """NVIDIA GPUs; left out: what the workers ask for."""
    ray_cpus: int | None = Field(default=None, ge=0)
    """CPUs that Ray hands out there; left out: what the group's workers ask for, so that others do not crowd in."""
    memory_gib: int | None = Field(default=None, ge=1)
    """Memory, shared memory included; left out: what `leash plan` says of the processes there, and a fifth more."""
    shared_memory_gib: int | None = Field(default=None, ge=1)
    """Of that, for /dev/shm: half for Ray's objects, half for copies of the weights; left out: enough for those."""
    node_selector: dict[str, str] = Field(default={})
    """Labels of the nodes that the pods may run on."""


class RolloutGroup(PodSize):
    """The group that scales from 0: for who may be on any node, today reference scorers and reward servers."""

    max_replicas: int | None = Field(default=None, ge=0)
    """Most pods; left out: one for each replica of the most replicated worker."""
    idle_timeout_s: int = Field(default=300, ge=1)
    """Seconds without a worker after which a pod is given back."""
    spot: bool = False
    """Try pods on spot nodes first, and on-demand nodes when there are none."""
    spot_selector: dict[str, str] = Field(default={"node-lifecycle": "spot"})
    """Labels of spot nodes; they are taken to carry taints of the same keys and values."""


class RunVolume(Section):
    """Storage that all pods mount at /runs: run folders, and models and data under /runs/cache."""

    size_gib: int = Field(default=200, ge=1)
    """Of the claim; checkpoints are the largest part."""
    storage_class: str | None = None
    """One that gives ReadWriteMany; left out: the cluster's default."""


class Values(Section):
    """The values of a deployment on Kubernetes."""

    name: DnsLabel | None = None
    """Name of the RayJob, and of the run's folder; left out: the recipe's."""
    namespace: DnsLabel = "leash"
    """Namespace of everything."""
    image: str | None = Field(default=None, min_length=1)
    """Image of every pod; left out: a tag of deploy/image/Dockerfile, the one with CUDA if a pod has GPUs."""
    ray_version: str = Field(default="", pattern=r"^(\d+\.\d+\.\d+)?$")
    """Of the image; left out: the one installed here."""
    retries: int = Field(default=3, ge=0)
    """Times that the job goes on from its last checkpoint on a new Ray cluster."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints if the recipe makes none on the way: what a retry may lose."""
    start_s: int = Field(default=1800, ge=1)
    """Longest wait for a worker, that for its node included, unless the recipe waits longer."""
    head: PodSize = PodSize(cpus=2, gpus=0, ray_cpus=0, memory_gib=8, shared_memory_gib=1)
    """The pod of Ray's head and of the driver; no worker runs there."""
    learner: PodSize = PodSize()
    """The one pod of all learner ranks."""
    rollout: RolloutGroup = RolloutGroup()
    """The pods that come and go."""
    run_volume: RunVolume = RunVolume()
    """Where runs are kept."""
    metrics_port: int = Field(default=9464, ge=1024, le=65535)
    """Port of the run's /metrics on the head pod."""
    monitoring_namespace: DnsLabel = "monitoring"
    """Namespace of the Prometheus that may scrape; nobody else may."""
    pod_monitor: bool = False
    """Add a PodMonitor, for clusters with the Prometheus operator."""


def read_values(file: Path | None, **options: str | None) -> Values:
    """Values from a TOML file, or the defaults, under those of the command line. Raises `UserError` with a line for
    every problem."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    except OSError as error:
        raise UserError(f"--values {file}: cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--values {file}: not valid TOML: {error}; correct that place") from error
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Values.model_validate(table | given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise UserError("\n".join(_problem(file, given, problem) for problem in problems)) from error


def _problem(file: Path | None, options: dict[str, str], problem: ErrorDetails) -> str:
    name = ".".join(map(str, problem["loc"]))
    where = f"--{name} {options[name]}" if name in options else f"--values {file}: {name}"
    return f"{where}: {problem['msg']}"
