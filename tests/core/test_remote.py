"""What Ray is asked for a worker. Ray is not started."""

from core.config import Resources
from core.remote import actor_options


def environment_of(resources: Resources) -> dict[str, str]:
    environment: dict[str, str] = actor_options("learner-0", resources)["runtime_env"]["env_vars"]
    return environment


def test_who_asks_for_no_gpu_sees_none() -> None:
    """Ray alone leaves all GPUs of the node visible to them."""
    assert environment_of(Resources())["CUDA_VISIBLE_DEVICES"] == ""


def test_who_asks_for_one_is_told_by_ray_which() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(Resources(num_gpus=0.5))
