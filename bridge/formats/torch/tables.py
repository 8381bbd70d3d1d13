"""Which inputs of an ExportedProgram are row numbers of a table, and of how many rows."""

from __future__ import annotations

from typing import Any

__all__ = ["read_vocabularies"]

# Operators of which the output holds values of the first argument and no others.
_HANDS_ON = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_to_copy.default",
        "alias.default",
        "clone.default",
        "contiguous.default",
        "expand.default",
        "flatten.using_ints",
        "permute.default",
        "reshape.default",
        "select.int",
        "slice.Tensor",
        "squeeze.default",
        "squeeze.dim",
        "to.dtype",
        "transpose.int",
        "unsqueeze.default",
        "view.default",
    )
)
_LOOK_UPS = frozenset(("torch.ops.aten.embedding.default", "torch.ops.aten.embedding_bag.default"))


def read_vocabularies(graph: dict[str, Any]) -> dict[str, int]:
    """Rows of the smallest table that each input indexes, by its name.

    Args:
        graph: The JSON that ``torch.export.save`` writes, of torch 2.8 or newer.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: It is not like that.
    """
    module = graph["graph_module"]
    body = module["graph"]
    source: dict[str, str] = {}
    for item in module["signature"]["input_specs"]:
        argument = item["user_input"]["arg"] if "user_input" in item else {}
        if "as_tensor" in argument:
            name = argument["as_tensor"]["name"]
            source[name] = name
    found: dict[str, int] = {}
    for node in body["nodes"]:
        names = [item["arg"].get("as_tensor", {}).get("name") for item in node["inputs"][:2]]
        if node["target"] in _HANDS_ON and names and names[0] in source:
            for item in node["outputs"]:
                if "as_tensor" in item:
                    source[item["as_tensor"]["name"]] = source[names[0]]
        elif node["target"] in _LOOK_UPS and len(names) > 1 and names[1] in source:
            rows = body["tensor_values"][names[0]]["sizes"][0].get("as_int")
            if rows:
                origin = source[names[1]]
                found[origin] = min(int(rows), found.get(origin, int(rows)))
    return found
