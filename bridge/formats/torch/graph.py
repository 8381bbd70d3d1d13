"""Reads an ExportedProgram's graph and lists everything in it that is not known to be harmless.

torch 2.13 turns parts of that JSON into running code: operator names are looked up below
``torch``, ``_operator`` and ``math``; sizes go through ``sympy.sympify``, which evaluates
them; guards and names of nodes become the source of generated functions; names in tree
specs are imported. Each of these is compared with what ``torch.export.save`` writes for
ordinary models. Source: torch/_export/serde/serialize.py, torch/export/_unlift.py,
torch/fx/graph.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bridge.formats.operators import allowed

__all__ = ["DICTS", "LISTS", "operator_counts", "scan_graph"]

_FUNCTIONS = frozenset(
    (
        "_operator.add", "_operator.sub", "_operator.mul", "_operator.truediv",
        "_operator.floordiv", "_operator.mod", "_operator.neg", "_operator.pos", "_operator.pow",
        "_operator.abs", "_operator.eq", "_operator.ne", "_operator.lt", "_operator.le",
        "_operator.gt", "_operator.ge", "_operator.and_", "_operator.or_", "_operator.not_",
        "_operator.getitem", "math.ceil", "math.floor", "math.trunc", "math.sqrt",
        "torch.sym_int", "torch.sym_float", "torch.sym_max", "torch.sym_min", "torch.sym_not",
        "torch.sym_ite", "torch.sym_sum", "torch.ops.higher_order.cond",
        "torch.ops.higher_order.while_loop", "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.ops.higher_order.wrap_with_autocast", "torch._C._set_grad_enabled",
    )
)  # fmt: skip
"""What a node may call besides ``torch.ops.aten``; sub-graphs are scanned like the graph."""

_SYMBOLIC = frozenset(
    (
        "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod",
        "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Where", "Max", "Min", "Abs", "Eq",
        "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan",
        "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "floor", "ceiling", "FloorToInt",
        "CeilToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "IntTrueDiv", "FloatTrueDiv",
        "PowByNatural", "FloatPow", "ToFloat", "Identity",
    )
)  # fmt: skip
"""Functions that a size or a guard may be built of."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*|")
_DOTTED = re.compile(r"[\w.]*")
_KEY = re.compile(r"[\w.\- ]*")
_PLAIN = re.compile(r"[\w.:;,+\-/<> ]*")

LISTS = frozenset(
    ("builtins.tuple", "builtins.list", "torch.fx.immutable_collections.immutable_list")
)
DICTS = frozenset(
    (
        "builtins.dict",
        "collections.OrderedDict",
        "torch.fx.immutable_collections.immutable_dict",
    )
)
"""The containers that inputs and outputs may be nested in, as tree specs call them."""

# Written as text into comments or kept as data, never compiled or imported.
_FREE_TEXT = frozenset(("as_string", "as_strings", "stack_trace", "torch_fn"))
_NAMES = frozenset(("name", "as_name", "forward_arg_names"))
_PATHS = frozenset(
    ("fqn", "parameter_name", "buffer_name", "tensor_constant_name", "buffer_name_to_mutate")
)
_OBJECTS = frozenset(("as_custom_obj", "custom_obj", "class_fqn", "custom_obj_name"))
# Mappings from names that the model chose.
_NAMED = frozenset(("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"))


def operator_counts(graph: dict[str, Any]) -> dict[str, int]:
    """How often each operator is used, as ``aten::add`` or in torch's own words."""
    counts: Counter[str] = Counter()
    for key, value in _strings(graph, ""):
        if key == "target" and "." in value:
            counts[_operator(value)] += 1
    return dict(sorted(counts.items()))


def scan_graph(graph: dict[str, Any]) -> list[str]:
    """What is not known to be harmless, one clause each; empty if all is."""
    try:
        return list(dict.fromkeys(_findings(graph, "")))
    except RecursionError:
        return ["the graph nests too deeply to be checked"]


def _findings(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        if key == "metadata":
            value = {name: text for name, text in value.items() if name == "source_fn_stack"}
        if key == "custom_obj_values" and value:
            yield "it uses objects of other classes"
        for name, item in value.items():
            if name in _OBJECTS:
                yield "it uses objects of other classes"
            if key == "range_constraints" and not _is_arithmetic(name):
                yield f"it has a constraint on '{name[:60]}'"
            if key in _NAMED and not _IDENTIFIER.fullmatch(name):
                yield f"it calls a tensor '{name[:60]}'"
            yield from _findings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _findings(item, key)
    elif isinstance(value, str):
        what = _judge(key, value)
        if what:
            yield f"{what} '{value[:80]}'"


def _judge(key: str, text: str) -> str | None:
    """What is wrong with a text under a key; ``None`` if nothing is."""
    if key in ("target", "as_operator"):
        operator = _operator(text)
        fine = operator in allowed("torch") or operator in _FUNCTIONS
        # Specs use the same key for the attribute that a parameter comes from.
        fine = fine or (key == "target" and bool(_DOTTED.fullmatch(text)) and not _called(text))
        return None if fine else "it uses the operator"
    if key == "expr_str":
        return None if _is_arithmetic(text) else "it has a size"
    if key == "guards_code":
        return None if _is_guard(text) else "it has a guard"
    if key in ("in_spec", "out_spec"):
        return None if _is_plain_tree(text) else "its inputs or outputs have the structure"
    if key in _FREE_TEXT:
        return None
    pattern = _IDENTIFIER if key in _NAMES else _DOTTED if key in _PATHS else _PLAIN
    return None if pattern.fullmatch(text) else f"it has under '{key[:40]}' the text"


def _operator(target: str) -> str:
    match = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)(\.[A-Za-z]\w*)?", target)
    if match and match[1] != "higher_order":
        return f"{match[1]}::{match[2]}"
    return target


def _called(target: str) -> bool:
    # The prefixes under which torch looks a target up among its own functions.
    return target.startswith(("torch", "_operator", "math", "#"))


def _is_arithmetic(text: str) -> bool:
    """Whether a size is arithmetic on symbols and numbers."""
    tree = _parsed(text)
    if tree is None:
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            known = node.id in _SYMBOLIC if id(node) in called else _is_symbol(node.id)
            if not known:
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not _is_symbol(node.value):
                return False
        elif not isinstance(node, (*_ARITHMETIC, ast.Call, ast.keyword)):
            return False
    return True


def _is_guard(text: str) -> bool:
    """Whether a guard only compares sizes of inputs: ``L['x'].size()[0] == 4``."""
    tree = _parsed(text)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if node.id not in _SYMBOLIC | {"L", "math"}:
                return False
        elif isinstance(node, ast.Attribute):
            if node.attr not in ("size", "stride", "storage_offset", "ceil", "floor", "trunc"):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not _KEY.fullmatch(node.value):
                return False
        elif not isinstance(node, (*_ARITHMETIC, ast.Call, ast.Subscript)):
            return False
    return True


_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.Load,
)  # fmt: skip


def _is_symbol(name: str) -> bool:
    # torch/utils/_sympy/symbol.py: sizes, unbacked sizes and floats; and sympy's constants.
    return re.fullmatch(r"(s|u|zuf|zf|z)\d+|oo|int_oo|true|false", name) is not None


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > 10_000:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_plain_tree(text: str) -> bool:
    """Whether a tree spec holds only tuples, lists and dicts with harmless keys."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(spec, list) or len(spec) != 2:
        return False
    pending = [spec[1]]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
            return False
        if node.get("type") is None:
            if node["children_spec"] or node.get("context") is not None:
                return False
            continue
        if node["type"] not in LISTS | DICTS or not _is_plain_context(node.get("context")):
            return False
        pending += node["children_spec"]
    return True


def _is_plain_context(text: object) -> bool:
    try:
        context = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return False
    if context is None:
        return True
    return isinstance(context, list) and all(
        isinstance(item, int) or (isinstance(item, str) and _KEY.fullmatch(item))
        for item in context
    )


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value
