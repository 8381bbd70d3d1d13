"""The Torch backend: TorchScript, ExportedProgram, AOTInductor packages, live modules, pickles."""
