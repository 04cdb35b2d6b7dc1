"""`module:name` of a user's function -> what is wrong with it, told without running the user's code.

The module's file is found and read, not imported. What the file alone cannot tell is taken to be right: a name may
come from `import *`, a module from its package's own code. So a refusal is not mistaken, and a pass proves nothing.
"""

import ast
import difflib
import importlib.util
import os
import sys
import tokenize
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

DYNAMIC = {
    "globals",
    "locals",
    "vars",
    "exec",
    "eval",
    "setattr",
    "modules",
    "__dict__",
    "__path__",
    "meta_path",
}
"""A file with one of these names may bind what its text does not show."""


def what_is_wrong(reference: str) -> str | None:
    """Why this function surely cannot be imported from here; None if it can, or if that takes running it."""
    module, _, name = reference.partition(":")
    spec = None
    for number, part in enumerate(parts := module.split(".")):
        if number and not _only_holds(spec):
            return None
        spec = _find(part, spec)
        if spec is None:
            return f"no module {'.'.join(parts[: number + 1])!r} is found from {os.getcwd()}"
    assert spec is not None
    file = _source_of(spec)
    return None if file is None else _unbound(file, name)


def _find(part: str, package: ModuleSpec | None) -> ModuleSpec | None:
    if (
        package is not None
    ):  # by the last part of its name: for a dotted one Python wants the package imported
        return PathFinder.find_spec(part, list(package.submodule_search_locations or ()))
    here = PathFinder.find_spec(part, [os.getcwd(), *sys.path])  # workers look into the present folder, too
    try:
        return here or importlib.util.find_spec(part)
    except ValueError:  # such as __main__
        return None


def _only_holds(package: ModuleSpec | None) -> bool:
    """Whether a package is nothing but the folder of its modules, so that what is not in there does not exist."""
    if package is None or package.submodule_search_locations is None:
        return False
    file = _source_of(package)
    if file is None:
        return package.origin is None  # a folder without an __init__.py
    tree = _parsed(file)
    return isinstance(tree, ast.Module) and all(isinstance(node, ast.Expr) for node in tree.body)


def _source_of(spec: ModuleSpec) -> Path | None:
    return Path(spec.origin) if spec.has_location and spec.origin and spec.origin.endswith(".py") else None


def _parsed(file: Path) -> ast.Module | SyntaxError | None:
    try:
        with tokenize.open(file) as source:
            return ast.parse(source.read())
    except SyntaxError as error:
        return error
    except (OSError, UnicodeDecodeError, ValueError):
        return None


def _unbound(file: Path, name: str) -> str | None:
    tree = _parsed(file)
    if tree is None:
        return None
    if isinstance(tree, SyntaxError):
        return f"{file}, line {tree.lineno}: {tree.msg}"
    bound = set(_names(tree))
    if name in bound or "*" in bound or "__getattr__" in bound or bound & DYNAMIC:
        return None
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return f"{file} has no {name!r}{_instead(name, functions)}"


def _names(tree: ast.Module) -> Iterator[str]:
    """Every name that the file says anywhere: more than its module has, never less."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=asname):
                yield (asname or name).partition(".")[0]
            case ast.Global(names=names):
                yield from names
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name
            case ast.ExceptHandler(name=str(name)):
                yield name


def _instead(name: str, functions: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, functions, n=1) or functions[:1]
    return f" (there is {close[0]})" if close else ""
