"""Reads TorchScript's code and lists everything in it that is not known to be harmless.

The code is parsed with Python's own parser, of whose language TorchScript's text is a
subset, and never executed. Torch reads it with another parser: text on which the two
could differ (comments, odd string literals), which ``torch.jit.save`` never writes, is
refused outright.

How torch resolves names (torch/csrc/jit/serialization/import_source.cpp, 2.13):
``torch.X`` is the operator ``aten::X``, ``ops.NS.X`` the operator ``NS::X``,
``__torch__.a.b`` something in the archive, and a method that a value's own class does not
have is the operator ``aten::method``; so names of methods are checked as well.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping

from bridge.formats.operators import allowed, refused

__all__ = ["scan"]

_FUNCTIONS = frozenset(
    (
        "annotate", "unchecked_cast", "uninitialized", "bool", "int", "float", "complex", "str",
        "len", "range", "isinstance", "hasattr", "getattr", "tuple", "list", "dict", "enumerate",
        "zip", "min", "max", "abs", "all", "any", "sum", "sorted", "reversed", "round", "divmod",
        "pow", "ord", "chr", "hex", "oct", "bin", "fork", "awaitable",
    )
)  # fmt: skip
"""Functions without a prefix that only compute. Not ``print`` (writes to the terminal),
not ``rpc_*`` (network)."""


def scan(sources: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """What is not known to be harmless, and how often each operator is used.

    Args:
        sources: Text of every code file, by name.

    Returns:
        Findings, one clause each (empty if all is harmless), and a count by operator.
    """
    findings: dict[str, None] = {}
    operators: Counter[str] = Counter()
    trees = {}
    for name, text in sources.items():
        try:
            odd = _odd_token(text)
            if odd:
                findings[f"{name} holds {odd}, which torch.jit.save does not write"] = None
            trees[name] = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
            findings[f"{name} cannot be read as code"] = None
    defined = {item for tree in trees.values() for item in _defined(tree)}
    for name, tree in trees.items():
        try:
            for what in _File(tree, defined, operators).findings():
                findings[f"{what} (in {name})"] = None
        except RecursionError:
            findings[f"{name} nests too deeply to be checked"] = None
    return list(findings), dict(sorted(operators.items()))


def _odd_token(text: str) -> str | None:
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
        return "a control character"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            return "a comment"
        if token.type == tokenize.STRING and (
            token.string[0] != '"' or token.string.startswith('"""')
        ):
            return "an unusual string literal"
        if token.type == tokenize.ERRORTOKEN:
            return "a character outside the language"
    return None


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names of methods, functions and attributes that the archive's code defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif (  # __annotations__["0"] = ..., for attributes that are no Python names
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id == "__annotations__"
            and isinstance(node.slice, ast.Constant)
        ):
            yield str(node.slice.value)


class _File:
    """The check of one file."""

    def __init__(self, tree: ast.Module, defined: set[str], operators: Counter[str]) -> None:
        self._tree = tree
        self._defined = defined
        self._operators = operators
        self._assigned = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }

    def findings(self) -> Iterator[str]:
        inside: set[int] = set()  # parts of a dotted name that were judged with the whole
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and id(node) not in inside:
                yield from self._attribute(node, inside)
            elif isinstance(node, ast.Name) and id(node) not in inside:
                if node.id in ("torch", "ops", "CONSTANTS", "__builtins__"):
                    yield f"it uses '{node.id}' as a value"
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, (ast.Import, ast.ImportFrom, ast.Lambda, ast.AsyncFunctionDef)):
                yield f"it holds a {type(node).__name__}"

    def _attribute(self, node: ast.Attribute, inside: set[int]) -> Iterator[str]:
        parts = [node.attr]
        value = node.value
        while isinstance(value, ast.Attribute):
            inside.add(id(value))
            parts.append(value.attr)
            value = value.value
        parts.reverse()
        root = value.id if isinstance(value, ast.Name) else ""
        if root in ("torch", "ops", "CONSTANTS", "__torch__"):
            inside.add(id(value))
        if root == "torch":
            yield from self._operator("::".join(["aten", *parts]))
        elif root == "ops":
            yield from self._operator("::".join(parts))
        elif root == "__torch__":
            if parts[:2] == ["torch", "classes"]:
                yield f"it uses the native class '{'.'.join(parts)}'"
        elif root != "CONSTANTS":
            own = root == "self"
            for part in parts:
                if f"aten::{part}" in refused("torch") and not (own and part in self._defined):
                    yield f"it uses a member called '{part}', the name of a refused operator"

    def _operator(self, name: str) -> Iterator[str]:
        self._operators[name] += 1
        if name in allowed("torch"):
            return
        if name in refused("torch"):
            yield f"it uses the operator {name}, which is not on the list of harmless ones"
        else:
            yield f"it uses the operator {name}, which is unknown here"

    def _call(self, node: ast.Call) -> Iterator[str]:
        called = node.func
        if isinstance(called, ast.Name):
            if called.id == "getattr":
                yield from self._getattr(node)
            elif called.id not in _FUNCTIONS and (
                called.id not in self._assigned or called.id in ("print", "rpc_async", "rpc_sync")
            ):
                yield f"it calls '{called.id}'"
        elif isinstance(called, ast.Attribute):
            if not self._is_dotted(called) and (
                called.attr not in self._defined
                and f"aten::{called.attr}" not in allowed("torch")
                and not (called.attr.startswith("__") and called.attr.endswith("__"))
            ):
                yield f"it calls a method '{called.attr}' that is defined nowhere"
        else:
            yield "it calls the result of an expression"

    def _getattr(self, node: ast.Call) -> Iterator[str]:
        wanted = node.args[1] if len(node.args) >= 2 else None
        name = wanted.value if isinstance(wanted, ast.Constant) else None
        if not isinstance(name, str):
            yield "it looks up an attribute whose name is not written down"
        elif name not in self._defined:
            yield f"it looks up an attribute '{name}' that is defined nowhere"
        elif f"aten::{name}" in refused("torch"):
            yield f"it looks up '{name}', the name of a refused operator"

    @staticmethod
    def _is_dotted(node: ast.Attribute) -> bool:
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            value = value.value
        return isinstance(value, ast.Name) and value.id in ("torch", "ops", "__torch__")
