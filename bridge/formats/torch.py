"""TorchScript, ExportedProgram and AOTInductor archives, live modules, and pickles."""

from __future__ import annotations

from bridge.model import FileProbe, Format

__all__ = ["AotInductor", "ExportedProgram", "TorchModule", "TorchPickle", "TorchScript"]


class TorchScript(Format):
    """A ``torch.jit.save`` archive."""

    name = "torchscript"
    title = "TorchScript"
    native_backend = "torch"
    suffixes = (".pt", ".pth", ".jit", ".ts")

    def sniff(self, file: FileProbe) -> bool:
        return any(name.startswith("code/") for name in file.members)


class ExportedProgram(Format):
    """A ``torch.export.save`` archive, or a live ``ExportedProgram``."""

    name = "exported_program"
    title = "ExportedProgram"
    native_backend = "torch"
    suffixes = (".pt2",)

    def sniff(self, file: FileProbe) -> bool:
        return "models/model.json" in file.members

    def sniff_live(self, live: object) -> bool:
        kind = type(live)
        return kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch.export")


class AotInductor(Format):
    """An AOTInductor package: native code in a ``.pt2`` archive."""

    name = "aot_inductor"
    title = "AOTInductor package"
    native_backend = "torch"
    suffixes = (".pt2",)

    def sniff(self, file: FileProbe) -> bool:
        return any(name.startswith("data/aotinductor/") for name in file.members)


class TorchModule(Format):
    """A live ``torch.nn.Module``."""

    name = "torch_module"
    title = "torch.nn.Module"
    native_backend = "torch"

    def sniff_live(self, live: object) -> bool:
        return any(
            base.__module__ == "torch.nn.modules.module" and base.__name__ == "Module"
            for base in type(live).__mro__
        )


class TorchPickle(Format):
    """A pickled module or state dict: loading one runs whatever it says."""

    name = "torch_pickle"
    title = "torch pickle"
    native_backend = "torch"
    suffixes = (".pt", ".pth", ".bin", ".ckpt")

    def sniff(self, file: FileProbe) -> bool:
        zipped = "data.pkl" in file.members and not any(
            name.startswith("code/") for name in file.members
        )
        return zipped or file.head[:1] == b"\x80"
