"""TorchScript archives: what their code says, and whether all of it is harmless."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bridge.dtypes import DType
from bridge.errors import InvalidModel, UnsupportedModel, UntrustedModel
from bridge.formats.torch.archive import Archive, open_archive, pickled_globals
from bridge.formats.torch.code import scan
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.signature import Signature, TensorSpec

__all__ = ["Argument", "TorchScript", "script_signature"]

_SAFE_GLOBALS = re.compile(
    r"__torch__\.(?!torch\.classes\.)[\w.]+"
    r"|collections\.OrderedDict"
    r"|torch\.\w+Storage|torch\.device"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.jit\._pickle\.(build_(intlist|tensorlist|doublelist|boollist|complexlist)"
    r"|restore_type_tag)"
)
"""What the C++ unpickler may be asked to make: scripted classes, plain tensors and lists.
Source: torch/csrc/jit/serialization/unpickler.cpp (torch 2.13). Classes in
``__torch__.torch.classes`` are native and run code of their own when they are unpickled."""


class TorchScript(Format):
    """A ``torch.jit.save`` archive.

    Its code is text in a subset of Python, interpreted by torch; without ``trust`` every
    operator in it has to be on the list in ``operators.txt``. Quantized
    operators and those of other libraries (torchvision, torchaudio) are not.
    """

    name = "torchscript"
    title = "TorchScript"
    native_backend = "torch"
    suffixes = (".pt", ".pth", ".jit", ".ts")

    def sniff(self, file: FileProbe) -> bool:
        return any(name.lower().startswith("code/") for name in file.members)

    def describe(self, model: ModelRef) -> ModelFacts:
        with open_archive(model.file, model.name) as archive:
            sources = _sources(archive)
            _, operators = scan(sources)
            versions = {
                member: archive.text(member).strip()
                for member in ("version",)
                if member in archive.members
            }
            root = _root(archive)
        notes = []
        signatures = {}
        try:
            signatures[""] = _text_signature(sources, root)
        except UnsupportedModel as error:
            notes.append(error.message)
        notes.append("TorchScript states no dtypes and no shapes.")
        return ModelFacts(
            signatures=signatures, operators=operators, versions=versions, notes=tuple(notes)
        )

    def check(self, model: ModelRef) -> None:
        with open_archive(model.file, model.name) as archive:
            if model.trust:
                return
            findings, _ = scan(_sources(archive))
            for member in archive.members:
                if "/" not in member and member.lower().endswith(".pkl"):
                    for name in pickled_globals(archive.read(member), model.name):
                        if not _SAFE_GLOBALS.fullmatch(name):
                            findings.append(f"{member} makes an object of class '{name}'")
        if findings:
            more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
            raise UntrustedModel(
                f"TorchScript model '{model.name}' may do more than compute: {findings[0]}{more}.",
                fix="Pass trust=True if you know who made the file, or export it without that.",
                model=model.name,
                findings=findings,
            )


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a scripted function: name, type as TorchScript writes it, default."""

    name: str
    type: str = "Tensor"
    has_default: bool = False


_SCALARS = {"int": DType.INT64, "float": DType.FLOAT64, "bool": DType.BOOL}


def script_signature(arguments: Iterable[Argument], returns: Sequence[str] | str) -> Signature:
    """The signature of a scripted ``forward``, from its types.

    Tensors have unknown dtype and shape. A Python ``int``, ``float`` or ``bool`` is an
    input of dtype int64, float64 or bool with one element. Arguments with a default may
    be left out. The suffixes that tracing adds to names (``.1``) are dropped.

    Args:
        arguments: The arguments without ``self``.
        returns: The return type as TorchScript writes it, or the names of the outputs.

    Raises:
        UnsupportedModel: An argument without default is neither tensor nor number.
    """
    given = tuple(arguments)
    names = [re.sub(r"\.\d+$", "", argument.name) for argument in given]
    if len(set(names)) < len(names):
        names = [argument.name for argument in given]
    inputs = []
    for argument, name in zip(given, names, strict=True):
        optional = re.fullmatch(r"Optional\[(\w+)\]", argument.type)
        kind = optional[1] if optional else argument.type
        if kind == "Tensor" or kind in _SCALARS:
            inputs.append(
                TensorSpec(
                    name,
                    _SCALARS.get(kind),
                    None,
                    native_name=argument.name,
                    has_default=argument.has_default,
                )
            )
        elif not argument.has_default:
            raise UnsupportedModel(
                f"the model's input '{name}' is of type {argument.type}; wanted a tensor or a "
                "number.",
                fix="Wrap the model so that forward takes one tensor per argument.",
                input=name,
                type=argument.type,
            )
    outputs = output_names(returns) if isinstance(returns, str) else tuple(returns)
    return Signature(tuple(inputs), tuple(TensorSpec(name, None, None) for name in outputs or ()))


def output_names(returns: str) -> tuple[str, ...] | None:
    """Names of the outputs that a return type promises, ``None`` where it does not say.

    Tensors and numbers count one each, tuples are flattened, the fields of a named tuple
    give names; the length of a list and the keys of a dict are known only after a call.
    """
    named = re.fullmatch(r"NamedTuple\((.*)\)", returns, re.DOTALL)
    if named:
        fields = [item.partition(":")[0].strip() for item in _split(named[1])]
        kinds = [item.partition(":")[2].strip() for item in _split(named[1])]
        return tuple(fields) if all(_leaves(kind) == 1 for kind in kinds) else None
    count = _leaves(returns)
    return None if count is None else tuple(f"output_{index}" for index in range(count))


def _leaves(kind: str) -> int | None:
    inner = re.fullmatch(r"Tuple\[(.*)\]", kind, re.DOTALL)
    if inner:
        counts = [_leaves(item) for item in _split(inner[1])]
        return None if None in counts else sum(count or 0 for count in counts)
    optional = re.fullmatch(r"Optional\[(.*)\]", kind, re.DOTALL)
    if optional:
        return _leaves(optional[1])
    return 1 if kind == "Tensor" or kind in _SCALARS else None


def _split(text: str) -> list[str]:
    """Parts between top-level commas."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _sources(archive: Archive) -> dict[str, str]:
    return {
        name: archive.text(name)
        for name in archive.members
        if name.lower().startswith("code/") and not name.lower().endswith(".debug_pkl")
    }


def _root(archive: Archive) -> str:
    """Qualified name of the class of the whole model: the first one in its pickle."""
    names = pickled_globals(archive.read("data.pkl"), archive.name)
    if not names or not names[0].startswith("__torch__."):
        raise InvalidModel(
            f"the archive '{archive.name}' holds code, but its data is no scripted module.",
            fix="Export it again with torch.jit.save.",
            model=archive.name,
        )
    return names[0]


def _text_signature(sources: dict[str, str], root: str) -> Signature:
    """The signature of ``forward`` of a class, read from the code."""
    forward = _member(sources, root, "forward")
    if not isinstance(forward, ast.FunctionDef):
        raise UnsupportedModel(f"the scripted class '{root}' has no readable forward.")
    plain = forward.args.args[1:]
    defaults = len(forward.args.defaults)
    arguments = [
        Argument(
            item.arg,
            "Tensor" if item.annotation is None else _annotation(item.annotation),
            has_default=index >= len(plain) - defaults,
        )
        for index, item in enumerate(plain)
    ]
    returns = "Tensor" if forward.returns is None else _annotation(forward.returns)
    keys = _returned_keys(forward)
    if keys is not None and returns == "Dict[str, Tensor]":
        return script_signature(arguments, keys)
    if returns.startswith("__torch__."):
        fields = _class(sources, returns)
        if fields is not None:
            listed = ", ".join(
                f"{item.target.id} : {ast.unparse(item.annotation)}"
                for item in fields.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            )
            returns = f"NamedTuple({listed})"
    if output_names(returns) is None:
        raise UnsupportedModel(
            f"the model returns {returns}, whose members are known only after a call; "
            "declare them with signature=."
        )
    return script_signature(arguments, returns)


def _returned_keys(forward: ast.FunctionDef) -> tuple[str, ...] | None:
    """The keys of the dict that a function returns, if it is written out in one place."""
    returned = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
    if len(returned) != 1:
        return None
    value = returned[0]
    if isinstance(value, ast.Name):
        assigned = [
            node.value
            for node in ast.walk(forward)
            if isinstance(node, ast.Assign)
            and any(isinstance(item, ast.Name) and item.id == value.id for item in node.targets)
        ]
        value = assigned[0] if len(assigned) == 1 else None
    if not isinstance(value, ast.Dict):
        return None
    keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
    texts = tuple(key for key in keys if isinstance(key, str))
    return texts if len(texts) == len(keys) else None


def _annotation(node: ast.expr) -> str:
    # Written "Tuple[Tensor, int]", parsed by Python as Tuple[(Tensor, int)].
    return re.sub(r"\[\((.*)\)\]", r"[\1]", ast.unparse(node))


def _class(sources: dict[str, str], qualified: str) -> ast.ClassDef | None:
    folder, _, name = qualified.rpartition(".")
    text = sources.get(f"code/{folder.replace('.', '/')}.py")
    if text is None:
        return None
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return next(
        (item for item in body if isinstance(item, ast.ClassDef) and item.name == name), None
    )


def _member(sources: dict[str, str], qualified: str, name: str) -> ast.stmt | None:
    found = _class(sources, qualified)
    if found is None:
        return None
    return next(
        (item for item in found.body if isinstance(item, ast.FunctionDef) and item.name == name),
        None,
    )
