"""The ``torch`` backend: TorchScript, ExportedProgram, AOTInductor packages, live modules."""
