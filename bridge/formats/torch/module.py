"""Live modules, and pickles of modules or weights."""

from __future__ import annotations

from bridge.errors import UntrustedModel
from bridge.model import FileProbe, Format, ModelFacts, ModelRef

__all__ = ["TorchModule", "TorchPickle"]


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
        is_archive = "data.pkl" in file.members and not any(
            name.lower().startswith("code/") for name in file.members
        )
        # The opcode PROTO with protocol 2 to 5 (Lib/pickle.py): torch.save before 1.6 wrote
        # bare pickles, and so does everything else that pickles.
        return is_archive or (file.head[:1] == b"\x80" and file.head[1:2] in b"\2\3\4\5")

    def describe(self, model: ModelRef) -> ModelFacts:
        return ModelFacts(notes=("A pickle tells nothing before its code has run.",))

    def check(self, model: ModelRef) -> None:
        if not model.trust:
            raise UntrustedModel(
                f"'{model.name}' is a pickle, which runs code of its own when it is loaded.",
                fix="Save the model as TorchScript or with torch.export.save instead, or pass "
                "trust=True if you know who made the file.",
                model=model.name,
            )
