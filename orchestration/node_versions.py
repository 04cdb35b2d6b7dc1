"""Whether all nodes of the cluster run the same versions: a difference shows up here, in a sentence, and not as a
weight that does not load or a log-prob that is off. What is compared: `core/versions.py`."""

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, WorkerError
from core.versions import require_versions, versions

DEADLINE_S = 120.0
"""For all nodes to answer: a node's first task starts a Python process, on a busy node after its others."""


def require_same_versions() -> None:
    """Raises `UserError` naming each node and library that differs from this process, if the cluster has more than
    one node. On nodes that join later each worker asks itself (`require_versions`), before it loads anything."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) < 2:
        return
    ask = ray.remote(versions).options
    answers = {
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}": ask(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in nodes
    }
    by_node = {node: _answer(node, reference) for node, reference in answers.items()}
    require_versions(versions(), by_node)


def _answer(node: str, reference: "ray.ObjectRef[dict[str, str]]") -> dict[str, str]:
    try:
        return ray.get(reference, timeout=DEADLINE_S)
    except GetTimeoutError:
        raise WorkerError(f"node {node} did not say its versions within {DEADLINE_S:g} s") from None
    except RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise UserError(
            f"node {node} cannot run Leash: {reason}; start every node from the same image or lock"
        ) from error
