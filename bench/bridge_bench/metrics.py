"""Task metrics of scores: how well they rank, and how alike two rankings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import InputError, nearest
from bridge.record import MetricRecord

__all__ = ["METRICS", "MetricRule", "auc", "rank_correlation", "top_k_overlap"]

_LIMITS = {"auc": "max_drop", "top_k": "min", "rank_correlation": "min"}
METRICS: Mapping[str, Mapping[str, float]] = {
    "auc": {"max_drop": 0.0005},
    "top_k": {"k": 10, "min": 0.99},
    "rank_correlation": {"min": 0.999},
}
"""Parameters of each metric and their defaults. They are stricter than the 1 % (or 0.1 %)
of the reference's quality that MLPerf Inference lets a submission lose, because losses of
some 0.001 in AUC are seen in the business of a ranker.
Source of the percentages: MLPerf Inference rules, "Benchmarks", quality targets 99 % and
99.9 %."""

_EXAMPLE = "auc:max_drop=0.0005, top_k:k=100,min=0.99 or rank_correlation:min=0.999,output=click"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """One metric that outputs of an arm have to keep, as its text says.

    ``auc`` compares outputs with labels, and the arm may lose ``max_drop`` of the
    reference's. ``top_k`` is the share of an arm's ``k`` highest that are the reference's
    too; ``rank_correlation`` is Spearman's; both have to reach ``limit``.

    Attributes:
        metric: One of ``METRICS``.
        limit: ``max_drop`` or ``min``.
        k: How many, for ``top_k``.
        output: Name of the output; ``None`` for every output of numbers (for ``auc``:
            that has labels).
        labels: Name of the labels; ``None`` for those of the output's name, or the only ones.

    Raises:
        InputError: There is no such metric, or a number is out of range.
    """

    metric: str
    limit: float
    k: int | None = None
    output: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(
                f"there is no metric '{self.metric}'.", fix=nearest(self.metric, METRICS)
            )
        lowest = -1.0 if self.metric == "rank_correlation" else 0.0
        if not lowest <= self.limit <= 1:
            raise InputError(
                f"{self.metric} takes a {_LIMITS[self.metric]} from {lowest:g} to 1; "
                f"got {self.limit}.",
                fix=f"Write it like {_EXAMPLE}.",
            )
        if (self.metric == "top_k") != (self.k is not None) or (self.k is not None and self.k < 1):
            raise InputError(
                f"{self.metric} with k={self.k}: top_k, and no other, takes a k from 1 on.",
                fix=f"Write it like {_EXAMPLE}.",
            )
        if self.labels is not None and not self.needs_labels:
            raise InputError(
                f"{self.metric} compares with the reference and takes no labels.",
                fix="Leave 'labels' out.",
            )

    @property
    def needs_labels(self) -> bool:
        """Whether it compares with the truth, and not with the reference."""
        return self.metric == "auc"

    @classmethod
    def parse(cls, text: str, **defaults: float) -> MetricRule:
        """Reads ``METRIC[:NAME=VALUE,...]``, such as ``auc:max_drop=0.0005,output=click``.

        Args:
            text: The text.
            **defaults: Values of parameters that the text leaves open, where the metric
                has them.

        Raises:
            InputError: The text is not of that form.
        """
        metric, _, rest = text.strip().partition(":")
        if metric not in METRICS:
            raise InputError(f"there is no metric '{metric}'.", fix=nearest(metric, METRICS))
        found: dict[str, str] = {}
        for piece in rest.split(",") if rest else ():
            name, sign, value = (part.strip() for part in piece.partition("="))
            known = (*METRICS[metric], "output", *(["labels"] if metric == "auc" else []))
            if not sign or name in found or name not in known or not value:
                raise InputError(
                    f"{piece!r} in the metric {text!r} is no NAME=VALUE of {', '.join(known)}, "
                    "or the second of it.",
                    fix=f"Write it like {_EXAMPLE}.",
                )
            found[name] = value
        numbers = {
            name: _number(found[name], text) if name in found else defaults.get(name, default)
            for name, default in METRICS[metric].items()
        }
        k = numbers.get("k")
        if k is not None and k != int(k):
            raise InputError(f"k={k} in {text!r} is no whole number.", fix="Give one.")
        return cls(
            metric=metric,
            limit=numbers[_LIMITS[metric]],
            k=None if k is None else int(k),
            output=found.get("output"),
            labels=found.get("labels"),
        )

    def __str__(self) -> str:
        numbers = {"k": self.k} if self.k is not None else {}
        parts = {
            **numbers,
            _LIMITS[self.metric]: f"{self.limit!r}",
            "output": self.output,
            "labels": self.labels,
        }
        shown = ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)
        return f"{self.metric}:{shown}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, such as ``{"metric": "auc", "max_drop": 0.0005, "output": "click"}``."""
        found: dict[str, Any] = {"metric": self.metric, _LIMITS[self.metric]: self.limit}
        for name in ("k", "output", "labels"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found

    def measure(
        self,
        output: str,
        reference: npt.NDArray[Any],
        scores: npt.NDArray[Any],
        labels: npt.NDArray[Any] | None = None,
    ) -> MetricRecord:
        """The metric of one output over all rows.

        A score that is no number counts as the worst there is: the metric is then 0.

        Args:
            output: Its name.
            reference: The reference's values, ``(rows,)`` or ``(rows, columns)``.
            scores: The arm's values, of the same shape.
            labels: Labels of the same shape, for metrics that need them.

        Raises:
            InputError: The labels do not fit, or say nothing (one class only), or the
                reference ranks nothing (all equal, not finite, fewer than ``k`` values).
        """
        reference, scores = _scores(reference), _scores(scores)
        if not np.isfinite(reference).all():
            raise InputError(
                f"{self.metric} of output '{output}' says nothing: the reference has values "
                "that are not finite.",
                fix="Give samples on which the model answers with numbers.",
                output=output,
            )
        is_ranked = reference.shape == scores.shape and not np.isnan(scores).any()
        try:
            if self.needs_labels:
                truth = _truth(labels, reference.shape)
                base = auc(reference, truth)
                value = auc(scores, truth) if is_ranked else 0.0
                limit = base - self.limit
                # Two floats of which the one is computed from the other: not equal to the bit.
                passes = value >= limit - 1e-12
                return MetricRecord(
                    metric=self.metric,
                    output=output,
                    reference=base,
                    value=value,
                    limit=limit,
                    passes=passes,
                )
            if self.k is not None:
                value = top_k_overlap(reference, scores if is_ranked else reference, self.k)
            else:
                value = rank_correlation(reference, scores if is_ranked else reference)
        except InputError as error:
            error.message = f"{self.metric} of output '{output}': {error.message}"
            error.detail["output"] = output
            raise
        value = value if is_ranked else 0.0
        return MetricRecord(
            metric=self.metric if self.k is None else f"top_{self.k}",
            output=output,
            reference=None,
            value=value,
            limit=self.limit,
            passes=value >= self.limit - 1e-12,
        )


def auc(scores: npt.NDArray[Any], labels: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive row scores above a negative one.

    Equal scores count one half. Of several columns, the mean of their areas.

    Args:
        scores: ``(rows,)`` or ``(rows, columns)``, without NaN.
        labels: Booleans of the same shape.

    Raises:
        InputError: A column of the labels has one class only.
    """
    areas = []
    for column, truth in zip(_columns(scores), _columns(labels), strict=True):
        positive = int(truth.sum())
        negative = truth.size - positive
        if not positive or not negative:
            raise InputError(
                f"the labels hold one class only: {positive} of {truth.size} are positive.",
                fix="Give labels with rows of both classes.",
            )
        above = float(_ranks(column)[truth].sum()) - positive * (positive + 1) / 2
        areas.append(above / (positive * negative))
    return float(np.mean(areas))


def top_k_overlap(reference: npt.NDArray[Any], scores: npt.NDArray[Any], k: int) -> float:
    """Share of the ``k`` highest scores whose reference is among its ``k`` highest, too.

    A row counts if its reference is at least the k-th largest one, so that equal values of
    the reference cannot be picked wrongly. Of ``(rows, columns)``, the mean over rows of
    the share within the row; else over all rows.

    Raises:
        InputError: There are no more than ``k`` values, of which any ranking would do.
    """
    shares = []
    for right, left in zip(_rows(reference), _rows(scores), strict=True):
        if right.size <= k:
            raise InputError(
                f"of {right.size} values the top {k} are all.",
                fix="Give more samples, or a smaller k.",
            )
        least = np.partition(right, right.size - k)[right.size - k]
        chosen = np.argsort(-left, kind="stable")[:k]
        shares.append(float(np.mean(right[chosen] >= least)))
    return float(np.mean(shares))


def rank_correlation(reference: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Spearman's rank correlation, equal values sharing the mean of their ranks.

    Of ``(rows, columns)``, the mean over rows of that within the row, without rows of
    which the reference is constant; else over all rows. Constant scores give 0.

    Raises:
        InputError: The reference is constant.
    """
    found = []
    for right, left in zip(_rows(reference), _rows(scores), strict=True):
        wanted, got = (_ranks(one) - (one.size + 1) / 2 for one in (right, left))
        spread = float(np.sqrt((wanted @ wanted) * (got @ got)))
        if np.any(wanted):
            found.append(float(wanted @ got) / spread if spread else 0.0)
    if not found:
        raise InputError(
            "all values of the reference are equal, which ranks nothing.",
            fix="Give samples on which its answers differ.",
        )
    return float(np.mean(found))


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return means[inverse.ravel()]


def _scores(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(rows,)`` or ``(rows, columns)``."""
    values = values.astype(np.float64)
    columns = values.reshape(len(values), -1) if values.ndim > 1 and values.size else values.ravel()
    return columns.ravel() if columns.shape[-1] == 1 else columns


def _columns(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [values] if values.ndim == 1 else list(values.T)


def _rows(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [values] if values.ndim == 1 else list(values)


def _truth(labels: npt.NDArray[Any] | None, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    if labels is None:
        raise InputError("there are no labels.", fix="Pass labels for it, one for each row.")
    if labels.dtype.kind not in "biuf":
        raise InputError(
            f"the labels are of dtype {labels.dtype}; wanted 0 and 1.", fix="Write numbers."
        )
    flat = labels.reshape(len(labels), -1) if labels.ndim > 1 and labels.size else labels
    truth = flat[:, 0] if flat.ndim == 2 and flat.shape[1] == 1 else flat
    if truth.shape != shape:
        raise InputError(
            f"the labels have shape {labels.shape}; the scores have {shape}.",
            fix="Give one label for each score.",
            wanted=shape,
            got=labels.shape,
        )
    if not np.isin(truth, (0, 1)).all():
        odd = truth[~np.isin(truth, (0, 1))].ravel()[0]
        raise InputError(f"a label is {odd}; wanted 0 or 1.", fix="Write 0 and 1, or booleans.")
    return truth.astype(bool)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{text!r} in the metric {whole!r} is no number.", fix=f"Write it like {_EXAMPLE}."
        ) from None
