"""Legal random inputs: ids inside their vocabularies, with the skew of real traffic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bridge.errors import OptionError
from bridge_zoo.description import Description, model_of
from bridge_zoo.layers import PAD_ID

__all__ = ["inputs"]


def inputs(
    description: Description, rows: int, seed: int | Sequence[int] = 0
) -> dict[str, npt.NDArray[np.generic]]:
    """A batch of random inputs, the same for the same arguments.

    Ids follow Zipf's law with exponent 1, small ids being the frequent ones: id ``k``
    comes up with probability ``log((k + 2) / (k + 1)) / log(vocabulary + 1)``. A list
    holds any number of ids up to its length, all equally likely, then ``PAD_ID``; none
    of its ids is ``PAD_ID``, the frequent ones being those from 1 on. Dense features are
    normal with mean 0 and deviation 1.

    Args:
        description: The description.
        rows: Size of the batch; 0 gives empty arrays.
        seed: Non-negative, or several such numbers; another seed gives another batch.

    Returns:
        Every input by name in signature order: int64 ``(rows,)`` or ``(rows, length)``
        for each id feature and float32 ``(rows, width)`` for each dense feature; owned
        by the caller.

    Raises:
        OptionError: ``rows`` is negative.
    """
    if rows < 0:
        raise OptionError(f"a batch has 0 rows or more; got {rows}.", rows=rows)
    model = model_of(description)
    generator = np.random.default_rng(seed)
    batch: dict[str, npt.NDArray[np.generic]] = {}
    for feature in model.id_features:
        if not feature.length:
            batch[feature.name] = _zipf(generator.random(rows), feature.vocabulary)
            continue
        ids = 1 + _zipf(generator.random((rows, feature.length)), feature.vocabulary - 1)
        counts = generator.integers(0, feature.length + 1, (rows, 1))
        batch[feature.name] = np.where(np.arange(feature.length) < counts, ids, PAD_ID)
    for dense in model.dense_features:
        batch[dense.name] = generator.standard_normal((rows, dense.width), dtype=np.float32)
    return batch


def _zipf(uniform: npt.NDArray[np.float64], vocabulary: int) -> npt.NDArray[np.int64]:
    ids = np.floor((vocabulary + 1) ** uniform).astype(np.int64) - 1
    # the power may round up to its open end
    return np.minimum(ids, vocabulary - 1)
