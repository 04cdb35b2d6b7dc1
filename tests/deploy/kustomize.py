"""As much of Kustomize as the overlays of `deploy/kuberay` use: resources, and JSON patches (RFC 6902) by kind."""

import copy
from pathlib import Path
from typing import Any

from orchestration.rendering.documents import Document, from_yaml


def built(folder: Path) -> list[Document]:
    """What `kubectl kustomize FOLDER` gives, but for the order of keys and documents."""
    (kustomization,) = from_yaml((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    known = {"apiVersion", "kind", "resources", "patches"}
    assert kustomization.keys() <= known, f"{folder}: uses more of Kustomize than this knows"
    documents: list[Document] = []
    for name in kustomization["resources"]:
        path = folder / name
        documents += built(path) if path.is_dir() else from_yaml(path.read_text(encoding="utf-8"))
    for patch in kustomization.get("patches", []):
        assert patch["target"].keys() == {"kind"}
        targets = [document for document in documents if document["kind"] == patch["target"]["kind"]]
        assert targets, f"{folder}: nothing is a {patch['target']['kind']}"
        for target in targets:
            operations: Any = from_yaml(patch["patch"])[0]
            for operation in operations:
                _apply(target, operation)
    return documents


def _apply(document: Document, operation: dict[str, Any]) -> None:
    parent, key = _find(document, operation["path"])
    match operation["op"]:
        case "replace":
            assert key in (range(len(parent)) if isinstance(parent, list) else parent), operation["path"]
            parent[key] = operation["value"]
        case "add":
            _insert(parent, key, operation["value"])
        case "copy":
            source, name = _find(document, operation["from"])
            _insert(parent, key, copy.deepcopy(source[name]))
        case other:
            raise AssertionError(f"{other}: not known here")


def _find(document: Document, pointer: str) -> tuple[Any, Any]:
    """What holds the place, and its key there."""
    *path, last = pointer.removeprefix("/").split("/")
    parent: Any = document
    for part in path:
        parent = parent[int(part) if isinstance(parent, list) else part]
    return parent, int(last) if isinstance(parent, list) else last


def _insert(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, value)
    else:
        parent[key] = value
