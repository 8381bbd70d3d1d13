"""Requests as a ranker gets them: one user, and many items to choose from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bridge_zoo.batches import inputs
from bridge_zoo.clicks import ClickLog, Labels
from bridge_zoo.description import Description, model_of

__all__ = ["RequestLog", "request", "user_inputs"]

_Inputs = dict[str, npt.NDArray[np.generic]]


def user_inputs(description: Description) -> tuple[str, ...]:
    """Names of the inputs that all items of a request share, in signature order."""
    model = model_of(description)
    ids = (one.name for one in model.id_features if one.side == "user")
    return (*ids, *(one.name for one in model.dense_features if one.side == "user"))


def request(
    description: Description, items: int, seed: int = 0, *, is_broadcast: bool = False
) -> _Inputs:
    """One user and so many items, random like those of ``inputs``; the same for equal arguments.

    Args:
        description: The description.
        items: How many; at least one.
        seed: Another seed draws another user and other items.
        is_broadcast: The user has one row, as models converted for that take it; else one
            for each item, all equal.
    """
    return _of_one_user(description, inputs(description, items, seed), is_broadcast)


class RequestLog(ClickLog):
    """The click log of requests: what one user does with each of many items.

    Args:
        description: The model, as for ``ClickLog``.
    """

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        self._description = description

    def request(
        self, items: int, seed: int = 0, *, is_broadcast: bool = False
    ) -> tuple[_Inputs, Labels]:
        """What ``request`` returns, and labels by task, one for each item."""
        whole = request(self._description, items, seed)
        generator = np.random.default_rng([2, seed])
        labels = {
            task: generator.random(items) < chance for task, chance in self._chances(whole).items()
        }
        truth = {
            task: labels[task] & labels["click"] if task == "buy" else labels[task]
            for task in model_of(self._description).tasks
        }
        return _of_one_user(self._description, whole, is_broadcast), truth


def _of_one_user(
    description: Description, batch: Mapping[str, npt.NDArray[np.generic]], is_broadcast: bool
) -> _Inputs:
    users = user_inputs(description)
    return {
        name: values
        if name not in users
        else values[:1]
        if is_broadcast
        else np.repeat(values[:1], len(values), axis=0)
        for name, values in batch.items()
    }
