"""The DeepRec backend: its serving library where there is one, its checkpoints where not."""
