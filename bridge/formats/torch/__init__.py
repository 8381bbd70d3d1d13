"""What torch saves: TorchScript, ExportedProgram, AOTInductor packages, pickles, live modules.

A model file is untrusted input, and most of torch's formats can run code while they are
loaded. Each format here is read without torch first, and refused unless it is trusted or
every piece of it is on a list of harmless ones. **A scan is no sandbox**: it closes the
doors that are known, it does not prove that native code has no faults, and memory or
time can still be wasted by a model that passes. Load models of unknown origin in a
process that has nothing to lose.
"""

from __future__ import annotations

from bridge.formats.torch.exported import AotInductor, ExportedProgram
from bridge.formats.torch.module import TorchModule, TorchPickle
from bridge.formats.torch.script import TorchScript

__all__ = ["AotInductor", "ExportedProgram", "TorchModule", "TorchPickle", "TorchScript"]
