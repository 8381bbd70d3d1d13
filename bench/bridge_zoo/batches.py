"""Legal random inputs: ids inside their vocabularies, with the skew of real traffic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridge.errors import OptionError
from bridge_zoo.description import Ranker

__all__ = ["inputs"]


def inputs(ranker: Ranker, rows: int, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """A batch of random inputs, the same for the same arguments.

    Ids follow Zipf's law with exponent 1, small ids being the frequent ones: id ``k``
    comes up with probability ``log((k + 2) / (k + 1)) / log(vocabulary + 1)``. Dense
    features are normal with mean 0 and deviation 1.

    Args:
        ranker: The description.
        rows: Size of the batch; 0 gives empty arrays.
        seed: Non-negative; another seed gives another batch.

    Returns:
        Every input by name in signature order: int64 ``(rows,)`` for each id feature
        and float32 ``(rows, dense_width)`` for ``dense``; owned by the caller.

    Raises:
        OptionError: ``rows`` is negative.
    """
    if rows < 0:
        raise OptionError(f"a batch has 0 rows or more; got {rows}.", rows=rows)
    generator = np.random.default_rng(seed)
    batch: dict[str, npt.NDArray[np.generic]] = {}
    for feature in ranker.id_features:
        ids = np.floor((feature.vocabulary + 1) ** generator.random(rows)).astype(np.int64) - 1
        # the power may round up to its open end
        batch[feature.name] = np.minimum(ids, feature.vocabulary - 1)
    batch["dense"] = generator.standard_normal((rows, ranker.dense_width), dtype=np.float32)
    return batch
