"""Whether all nodes of the cluster run the same versions: a difference shows up here, in a sentence, and not as a
weight that does not load or a log-prob that is off."""

from collections.abc import Iterator, Mapping

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, WorkerError
from orchestration.run_folder import versions

DEADLINE_S = 120.0
"""For all nodes to answer: a node's first task starts a Python process, on a busy node after its others."""

Versions = Mapping[str, str]
"""Library -> version."""


def require_same_versions() -> None:
    """Raises `UserError` naming each node and library that differs from this process, if the cluster has more than
    one node. Nodes that join later are not asked."""
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
    problems = list(differences(versions(), by_node))
    if problems:
        raise UserError("\n".join(problems))


def differences(own: Versions, by_node: Mapping[str, Versions]) -> Iterator[str]:
    """A sentence for each node that does not run what this process runs."""
    here = _comparable(own)
    for node, found in by_node.items():
        there = _comparable(found)
        unlike = [
            f"{library} {there.get(library, 'is missing')} (here {here.get(library, 'missing')})"
            for library in sorted({*here, *there})
            if here.get(library) != there.get(library)
        ]
        if unlike:
            yield (
                f"node {node} runs other versions than the driver: {', '.join(unlike)}; start every node from the "
                "same image or lock"
            )


def _comparable(found: Versions) -> dict[str, str]:
    """Without what may differ between a CPU and a GPU node: torch's +cpu, and the name of vLLM's package."""
    return {library.removesuffix("-cpu"): version.partition("+")[0] for library, version in found.items()}


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
