"""The operators of DeepRec that TensorFlow does not have, as far as they are known here.

Source: ``tensorflow/core/ops/kv_variable_ops.cc`` and ``fused_embedding_ops.cc`` of
DeepRec. Operators for training only (gradients, scatter, optimizers) are left out: they do
not run in a served graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bridge.formats.operators import allowed, refused

__all__ = ["FUSED", "GATHERS", "HANDLE", "INITIALIZER", "OWN", "foreign", "is_own"]

HANDLE = "KvVarHandleOp"
"""The handle of an embedding variable."""

INITIALIZER = "InitializeKvVariableOp"
"""What is given the rows of ids that are not in the table."""

GATHERS = frozenset({"KvResourceGather", "KvResourceGatherV1"})
"""Rows by ids: handle, ids, rows for absent ids, then counts in V1."""

FUSED = frozenset(
    {
        "FusedEmbeddingSparsePreLookUp",
        "FusedEmbeddingSparsePostLookUp",
        "FusedEmbeddingSparsePostLookUpV2",
        "FusedEmbeddingLocalSparseLookUp",
        "FusedSafeEmbeddingLookupSparseLocal",
        "PruneInvalidAndFillEmptyRows",
        "UniqueWithCountsV3",
        "PartitionWithPermutation",
    }
)
"""Operators that hold several steps of a lookup."""

OWN = (
    frozenset(
        {
            HANDLE,
            INITIALIZER,
            "KvVarIsInitializedOp",
            "KvVariableShape",
            "ReadKvVariableOp",
            "DestroyKvResourceOp",
            "KvResourceImport",
            "KvResourceImportV2",
            "KvResourceImportV3",
            "KvResourceIncrImport",
            "KvResourceExport",
            "KvResourceGeneratePartitionedTensor",
            "KvResourceScatterAdd",
            "EVGetFrequency",
            "EVGetVersion",
        }
    )
    | GATHERS
    | FUSED
)

# More are written by passes over the graph, and each version adds some.
_FAMILY = re.compile(r"(_OPT_)?Kv(Resource|Var)\w+|EVGet\w+|GroupEmbedding\w+|Fused\w*Embedding\w+")


def is_own(op: str) -> bool:
    """Whether an operator is DeepRec's, by its name."""
    return op in OWN or _FAMILY.fullmatch(op) is not None


def foreign(ops: Iterable[str]) -> list[str]:
    """Those that neither TensorFlow nor DeepRec has, as far as is known here, sorted."""
    known = allowed("tensorflow") | refused("tensorflow")
    return sorted({op for op in ops if op not in known and not is_own(op)})
