"""Manifests as YAML text, and back. The door to PyYAML."""

from collections.abc import Iterable
from typing import Any

import yaml

Document = dict[str, Any]
"""One Kubernetes object."""


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented, texts of several lines as they are, nothing referred to by anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(documents: Iterable[Document]) -> str:
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        for document in documents
    )


def from_yaml(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document is not None]
