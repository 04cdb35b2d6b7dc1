"""Whether all nodes of the cluster run the same versions: a difference shows up here, in a sentence, and not as a
weight that does not load or a log-prob that is off. What is compared: `core/versions.py`."""

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, WorkerError
from core.versions import Versions, require_versions, versions

DEADLINE_S = 120.0
"""For all nodes to answer: a node's first task starts a Python process, on a busy node after its others."""


def require_same_versions() -> None:
    """Raises `UserError` naming each node and library that differs from this process, if the cluster has more than
    one node. On nodes that join later each worker asks itself (`require_versions`), before it loads anything. A
    node that Ray finds dead meanwhile has none."""
    nodes = _living_nodes()
    if len(nodes) < 2:
        return
    ask = ray.remote(versions).options
    answers = {
        node_id: ask(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote()
        for node_id in nodes
    }
    by_node = {nodes[node_id]: _answer(node_id, nodes[node_id], answers[node_id]) for node_id in nodes}
    require_versions(versions(), {node: said for node, said in by_node.items() if said is not None})


def _living_nodes() -> dict[str, str]:
    """Address of every node, by Ray's id."""
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def _answer(node_id: str, node: str, reference: "ray.ObjectRef[dict[str, str]]") -> Versions | None:
    """None from a node that has died."""
    try:
        return ray.get(reference, timeout=DEADLINE_S)
    except GetTimeoutError:
        raise WorkerError(f"node {node} did not say its versions within {DEADLINE_S:g} s") from None
    except RayError as error:
        if node_id not in _living_nodes():
            return None
        reason = str(error).strip().rpartition("\n")[2]
        raise UserError(
            f"node {node} cannot run Leash: {reason}; start every node from the same image or lock"
        ) from error
