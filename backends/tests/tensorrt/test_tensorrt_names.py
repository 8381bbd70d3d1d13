"""Every name of TensorRT and CUDA in the sources exists in the installed modules.

The run path needs a GPU and may never have run where these tests do. So the sources are
walked: the types of expressions are inferred from annotations, from assignments and from
the signatures in the docstrings of the bindings (pybind11 writes them), and each
attribute of a TensorRT or CUDA object is looked up in the real class. A second test lets
mypy do the same with stubs made from the installed bindings, arguments included.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bridge_tensorrt
from bridge import DType

PACKAGE = Path(bridge_tensorrt.__file__).parent
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("*.py"))}

cudart = pytest.importorskip("cuda.bindings.runtime")
INSTALLED = [
    name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name) is not None
]
if not INSTALLED:
    pytest.skip("neither tensorrt nor tensorrt_rtx is installed", allow_module_level=True)


@dataclass(frozen=True)
class Kind:
    """What an expression is: a module, a class, an object of a class, or a bound method."""

    word: str
    value: Any
    method: str = ""


@dataclass
class Walk:
    """One walk over the sources, against one module of TensorRT.

    ``trt`` and ``cudart`` name the modules at run time, ``rtx`` and ``cu`` in annotations.
    """

    trt: ModuleType
    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    attributes: dict[str, dict[str, Kind | None]] = field(default_factory=dict)
    functions: dict[str, Kind | None] = field(default_factory=dict)
    place: str = ""

    def run(self, sources: dict[str, str]) -> Walk:
        trees = {name: ast.parse(text) for name, text in sources.items()}
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.attributes.setdefault(node.name, {})
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    self.functions[node.name] = self.annotated(node.returns)
                if isinstance(node, ast.ClassDef):
                    self.attributes[node.name] = dict(self.members(node))
        self.functions["runtime"] = Kind("module", cudart)
        # Names that mean nothing in particular: ours, and those of everyday objects.
        everyday: tuple[Any, ...] = (
            str,
            dict,
            list,
            set,
            Path,
            np.ndarray,
            np.dtype,
            re,
            os,
            DType.BOOL,
        )
        self.plain = {name for one in everyday for name in dir(one)}
        self.plain |= {name for members in self.attributes.values() for name in members}
        self.vocabulary = {
            name
            for one in vars(self.trt).values()
            if isinstance(one, type)
            for name in dir(one)
            if not name.startswith("_")
        } - self.plain
        for name, tree in trees.items():
            self.place = name
            self.block(tree.body, {})
        return self

    def members(self, owner: ast.ClassDef) -> Iterator[tuple[str, Kind | None]]:
        for node in ast.walk(owner):
            if isinstance(node, ast.AnnAssign):
                if isinstance(node.target, ast.Name):
                    yield node.target.id, self.annotated(node.annotation)
                elif isinstance(node.target, ast.Attribute):
                    yield node.target.attr, self.annotated(node.annotation)
            elif isinstance(node, ast.FunctionDef):
                yield node.name, None
                arguments = {one.arg: one.annotation for one in node.args.args}
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Assign) and isinstance(
                        inner.targets[0], ast.Attribute
                    ):
                        value = inner.value
                        found = None
                        if isinstance(value, ast.Name):
                            found = self.annotated(arguments.get(value.id))
                        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
                            found = self.ours(value.func.id)
                        yield inner.targets[0].attr, found

    def ours(self, name: str) -> Kind | None:
        return Kind("ours", name) if name in self.attributes else None

    def annotated(self, node: ast.expr | None) -> Kind | None:
        """The object that an annotation stands for; None where it is neither of theirs nor ours."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            sides = [self.annotated(node.left), self.annotated(node.right)]
            return next((side for side in sides if side is not None), None)
        if isinstance(node, ast.Name):
            return self.ours(node.id) or (Kind("foreign", node.id) if node.id != "Any" else None)
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node).split(".")
            home = {"rtx": self.trt, "cu": cudart}.get(chain[0])
            if home is not None:
                found: Any = home
                for part in chain[1:]:
                    if not hasattr(found, part):
                        self.problem(node, f"annotation {ast.unparse(node)} names nothing")
                        return None
                    found = getattr(found, part)
                self.used.add(".".join(chain[1:]))
                return Kind("object", found)
        return None

    def block(self, body: list[ast.stmt], known: dict[str, Kind | None]) -> None:
        for statement in body:
            self.statement(statement, known)

    def statement(self, node: ast.stmt, known: dict[str, Kind | None]) -> None:
        if isinstance(node, ast.FunctionDef):
            inner = dict(known)
            for one in (*node.args.args, *node.args.kwonlyargs):
                if one.arg != "self":
                    inner[one.arg] = self.annotated(one.annotation)
            self.block(node.body, inner)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                kind = self.kind(base, known)
                if kind is not None and kind.word == "class":
                    self.overrides(node, kind.value)
            self.block(node.body, {**known, "self": Kind("ours", node.name)})
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                known[alias.asname or alias.name] = Kind("foreign", alias.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            value = self.kind(node.value, known) if node.value is not None else None
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(node, ast.AnnAssign):
                value = self.annotated(node.annotation) or value
            for target in targets:
                if isinstance(target, ast.Name):
                    known[target.id] = value
                else:
                    self.kind(target, known)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self.statement(child, known)
                elif isinstance(child, ast.ExceptHandler):
                    self.block(child.body, known)
                elif isinstance(child, ast.withitem):
                    self.kind(child.context_expr, known)
                elif isinstance(child, ast.expr):
                    self.kind(child, known)

    def overrides(self, node: ast.ClassDef, base: type) -> None:
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("__"):
                self.used.add(f"{base.__name__}.{item.name}")
                if not hasattr(base, item.name) and f"def {item.name}(" not in (base.__doc__ or ""):
                    self.problem(item, f"{base.__name__} calls no method {item.name}")

    def kind(self, node: ast.expr, known: dict[str, Kind | None]) -> Kind | None:
        """The kind of an expression; everything inside it is checked on the way."""
        if isinstance(node, ast.Name):
            fixed = {"trt": Kind("module", self.trt), "cudart": Kind("module", cudart)}
            return fixed.get(node.id) or known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(node, known)
        if isinstance(node, ast.Call):
            for part in (*node.args, *(keyword.value for keyword in node.keywords)):
                self.kind(part, known)
            return self.called(node, known)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            inner = dict(known)
            for one in node.generators:
                self.kind(one.iter, inner)
                for name in ast.walk(one.target):
                    if isinstance(name, ast.Name):
                        inner[name.id] = None
                for test in one.ifs:
                    self.kind(test, inner)
            parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            for part in parts:
                self.kind(part, inner)
            return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child, known)
        return None

    def attribute(self, node: ast.Attribute, known: dict[str, Kind | None]) -> Kind | None:
        owner = self.kind(node.value, known)
        name = node.attr
        if owner is None:
            if name in self.vocabulary:
                self.problem(node, f"{ast.unparse(node)}: the owner's type is not known")
            return None
        if owner.word == "ours":
            return self.attributes[owner.value].get(name)
        if owner.word in ("method", "foreign"):
            return owner if owner.word == "foreign" else None
        shown = getattr(owner.value, "__name__", type(owner.value).__name__).rpartition(".")[2]
        self.used.add(f"{shown}.{name}")
        if not hasattr(owner.value, name):
            self.problem(node, f"{ast.unparse(node)}: {shown} has no {name}")
            return None
        found = inspect.getattr_static(owner.value, name)
        if owner.word == "object":
            if isinstance(node.ctx, ast.Store) and getattr(found, "fset", None) is None:
                self.problem(node, f"{ast.unparse(node)}: {shown}.{name} cannot be set")
            if isinstance(found, property):
                return self.returned(found.fget.__doc__)
            return Kind("method", owner.value, name)
        found = getattr(owner.value, name)
        if isinstance(found, type):
            return Kind("class", found)
        return Kind("value", found)

    def called(self, node: ast.Call, known: dict[str, Kind | None]) -> Kind | None:
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self.functions[node.func.id] or self.ours(node.func.id)
        if isinstance(node.func, ast.Name):
            return self.ours(node.func.id)
        owner = self.kind(node.func, known)
        if owner is None or owner.word == "foreign":
            if isinstance(node.func, ast.Attribute):
                return self.functions.get(node.func.attr)
            return None
        if owner.word == "class":
            return Kind("object", owner.value)
        if owner.word == "method":
            return self.returned(getattr(owner.value, owner.method).__doc__)
        return None

    def returned(self, doc: str | None) -> Kind | None:
        """The class that a pybind11 docstring states as the result, if it is TensorRT's."""
        match = re.search(r"-> [\w.]*?(\w+)$", doc or "", re.MULTILINE)
        found = getattr(self.trt, match[1], None) if match else None
        return Kind("object", found) if isinstance(found, type) else None

    def problem(self, node: ast.AST, text: str) -> None:
        self.problems.append(f"{self.place}:{getattr(node, 'lineno', 0)}: {text}")


@pytest.mark.parametrize("name", INSTALLED)
def test_every_name_exists(name: str) -> None:
    walk = Walk(importlib.import_module(name)).run(SOURCES)
    problems = walk.problems
    if name == "tensorrt":  # what only functions for tensorrt_rtx use
        own = "(?i)compute_?capabilit|runtime_?(config|cache)|specialization"
        problems = [text for text in problems if not re.search(own, text)]
    assert problems == []
    # What the walk must have seen, or it has gone blind.
    assert walk.used >= {
        "Builder.build_serialized_network",
        "ILogger.log",
        "IBuilderConfig.clear_flag",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.infer_shapes",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_output_allocator",
        "IExecutionContext.set_tensor_address",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_tensor_profile_shape",
        "IOptimizationProfile.set_shape",
        "IOutputAllocator.reallocate_output_async",
        "INetworkDefinition.num_layers",
        "ITensor.get_dimension_name",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
        "Runtime.engine_host_code_allowed",
        "runtime.cudaHostAlloc",
        "runtime.cudaMalloc",
        "runtime.cudaMemcpyAsync",
        "cudaMemcpyKind.cudaMemcpyHostToDevice",
        "runtime.cudaStreamSynchronize",
        "cudaDeviceProp.major",
        "BuilderFlag.REFIT",
        "ICudaEngine.create_runtime_config",
        "IRuntimeCache.deserialize",
        "ITimingCache.serialize",
        "OnnxParserRefitter.refit_from_bytes",
        "Refitter.get_missing_weights",
        "runtime.cudaGraphLaunch",
        "runtime.cudaStreamBeginCapture",
        "runtime.cudaStreamWaitEvent",
    }
    assert len(walk.used) > 90


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("execution.py", "self._context.execute_async_v3(", "self._context.execute_async_v4("),
        ("execution.py", "self._context.infer_shapes()", "self._context.infer_all_shapes()"),
        ("execution.py", "def notify_shape(", "def notify_shapes("),
        ("execution.py", "context: rtx.IExecutionContext |", "context: rtx.IContext |"),
        ("kernels.py", "native.create_execution_context(", "native.create_context("),
        ("kernels.py", "config.set_runtime_cache(", "config.attach_runtime_cache("),
        ("kernels.py", "known.EAGER", "known.EARLY"),
        ("kernels.py", "rtx.IRuntimeCache =", "rtx.RuntimeCache ="),
        ("building.py", "config.create_timing_cache(", "config.make_timing_cache("),
        ("building.py", "trt.BuilderFlag.VERSION_COMPATIBLE", "trt.BuilderFlag.COMPATIBLE"),
        ("refitting.py", "refitter.refit_cuda_engine()", "refitter.refit()"),
        ("refitting.py", "parser.refit_from_file(", "parser.refit("),
        ("cuda.py", "cudart.cudaStreamEndCapture(", "cudart.cudaStreamStopCapture("),
        ("execution.py", "runtime().cudaSetDevice", "runtime().cudaChooseTheDevice"),
        ("engine.py", "native.get_tensor_mode(", "native.tensor_mode("),
        ("engine.py", "runtime.engine_host_code_allowed", "runtime.host_code_allowed"),
        ("engine.py", "trt.TensorIOMode.INPUT", "trt.TensorIOMode.IN"),
        ("building.py", "trt.BuilderFlag.TF32", "trt.BuilderFlag.TENSORFLOAT"),
        ("building.py", "native.set_shape(", "native.set_shapes("),
        (
            "building.py",
            "config.builder_optimization_level =",
            "config.num_optimization_profiles =",
        ),
        ("network.py", "error.node_operator()", "error.operator()"),
        ("network.py", "definition.num_inputs", "definition.input_count"),
        ("network.py", "builder: rtx.Builder = trt.Builder(", "builder = untyped("),
        ("messages.py", "def log(", "def write("),
        ("cuda.py", "cudart.cudaHostAlloc(", "cudart.cudaAllocHost("),
        ("cuda.py", "about.major", "about.majorVersion"),
        ("cuda.py", "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaMemcpyKind.HostToDevice"),
        ("native.py", "context.set_input_shape(", "context.set_binding_shape("),
    ],
)
def test_a_wrong_name_is_found(file: str, right: str, wrong: str) -> None:
    assert right in SOURCES[file]
    doctored = {**SOURCES, file: SOURCES[file].replace(right, wrong)}
    found = Walk(importlib.import_module(INSTALLED[-1])).run(doctored).problems
    assert found, wrong
    assert all(text.startswith(f"{file}:") for text in found if "has no" in text)


@pytest.mark.parametrize("name", INSTALLED)
def test_names_that_are_looked_up_by_text_exist(name: str) -> None:
    """Enum members that come from options and tables, which no walk can see."""
    from bridge_tensorrt.network import _DTYPES
    from bridge_tensorrt.options import EngineOptions

    trt = importlib.import_module(name)
    assert set(_DTYPES) <= set(trt.DataType.__members__)
    choices = {one.name: one.choices for one in EngineOptions.describe()}["hardware"]
    levels = {level.lower() for level in trt.HardwareCompatibilityLevel.__members__}
    # The last came after 10.0; an option error says so where it is missing.
    assert set(choices or ()) - {"same_compute_capability"} <= levels
    assert [int(level) for level in trt.ILogger.Severity.__members__.values()] == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs of the installed bindings, made from the signatures in their docstrings."""
    pytest.importorskip("mypy")
    if "tensorrt_rtx" not in INSTALLED:
        pytest.skip("annotations name tensorrt_rtx, which is not installed")
    folder = tmp_path_factory.mktemp("stubs")
    command = "import sys, mypy.stubgen as s; sys.argv[0] = 'stubgen'; s.main()"
    names = ["-m", "tensorrt_rtx_bindings.tensorrt_rtx"]
    subprocess.run(
        [sys.executable, "-c", command, "--inspect-mode", "-q", "-o", str(folder), *names],
        check=True,
    )
    # Some signatures that pybind11 writes are no Python: mypy would stop at the first.
    stub = folder / "tensorrt_rtx_bindings" / "tensorrt_rtx.pyi"
    lines = stub.read_text(encoding="utf-8").splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            name = re.match(r"(\s*def \w+)\(", lines[at])
            assert name is not None, lines[at]
            lines[at] = f"{name[1]}(*args: object, **kwargs: object) -> object: ..."
    text = "\n".join(lines)
    # Protocols that the classes have in C and no docstring tells of; tests that build use both.
    for owner, method in (
        ("Dims", "def __iter__(self) -> collections.abc.Iterator[int]: ..."),
        ("IHostMemory", "def __buffer__(self, flags: int) -> memoryview: ..."),
    ):
        text, count = re.subn(
            rf"^class {owner}\b.*:$", rf"\g<0>\n    {method}", text, flags=re.MULTILINE
        )
        assert count == 1
    stub.write_text(text, encoding="utf-8")
    (folder / "tensorrt_rtx_bindings" / "__init__.pyi").touch()
    (folder / "tensorrt_rtx").mkdir()
    (folder / "tensorrt_rtx" / "__init__.pyi").write_text(
        "from tensorrt_rtx_bindings.tensorrt_rtx import *\n__version__: str\n", encoding="utf-8"
    )
    return folder


def type_errors(package: Path, stubs: Path) -> list[str]:
    files = [str(path) for path in sorted(package.glob("*.py"))]
    flags = ["--strict", "--explicit-package-bases", "--namespace-packages"]
    flags += ["--allow-untyped-calls", "--config-file", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, "--cache-dir", str(stubs / "cache"), *files],
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(package.parent), str(stubs)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [
        line
        for line in done.stdout.splitlines()
        if ": error: " in line and package.name in line and "[import-untyped]" not in line
    ]


def test_types_fit_the_installed_bindings(stubs: Path, tmp_path: Path) -> None:
    assert type_errors(PACKAGE, stubs) == []
    copy = tmp_path / "bridge_tensorrt"
    copy.mkdir()
    for name, text in SOURCES.items():
        wrong = text.replace("execute_async_v3(stream.handle)", "execute_async_v3()")
        (copy / name).write_text(wrong, encoding="utf-8")
    found = type_errors(copy, stubs)
    assert any("execution.py" in line and "execute_async_v3" in line for line in found), found
