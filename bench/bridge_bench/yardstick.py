"""What is right: the inputs that every arm is checked on, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.check import Arrays
from bridge.errors import BridgeError, InputError, OptionError, PredictTimeout, WorkerDied
from bridge.signature import Signature
from bridge_bench.agreement import match_inputs, match_outputs
from bridge_bench.crew import Crew
from bridge_bench.entrant import Entrant
from bridge_bench.gate import gate_inputs
from bridge_bench.request import Request
from bridge_bench.tournament import Heat

__all__ = ["Yardstick"]

_EDGE = "edge/"
_ZEROS = "edge/zeros"
_LEAST_ROWS = 64  # of a batch of samples: one call a row would take long


@dataclass
class Yardstick:
    """Inputs and right answers, call by call.

    Attributes:
        signature: The reference's, which the record has as well.
        heats: The buckets with the inputs that are timed.
        keys: What each checked call is called.
        inputs: All samples in order, each bucket's inputs, edges.
        answers: The right outputs, by the reference's names.
        samples: How many of the calls, from the first on, hold samples.
        decisive: How many, from the first on, have numbers that decide; the rest are zeros.
        notes: Sentences for the record's warnings.
    """

    signature: Signature
    heats: list[Heat]
    keys: list[str] = field(default_factory=list)
    inputs: list[Arrays] = field(default_factory=list)
    answers: list[Arrays] = field(default_factory=list)
    samples: int = 0
    decisive: int = 0
    notes: list[str] = field(default_factory=list)
    _on_zeros: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, crew: Crew, entrant: Entrant, signature: Signature, request: Request) -> Yardstick:
        """Makes the inputs and has the reference answer them.

        Raises:
            InputError: Inputs cannot be made, or samples, labels or expected outputs do not fit.
            OptionError: Batches were asked for of a model without rows.
            BridgeError: The reference fails on other inputs than an edge.
        """
        profile = request.profile
        sizes = [one.rows for one in request.buckets]
        if sizes != [1] and not signature.batch_axes(profile.batch_dim):
            raise OptionError(
                f"batches {sizes} were asked for, but {request.models[0].name} has no dim that "
                f"counts rows: {signature}.",
                fix="Leave --batch out, or name that dim with --batch-dim.",
            )
        variants = range(request.protocol.variants)
        heats = [
            Heat(rows, [profile.make(signature, one, rows) for one in variants]) for rows in sizes
        ]
        found = cls(signature, heats)
        if profile.samples is not None:
            for index, one in enumerate(profile.batches(signature, max(_LEAST_ROWS, *sizes))):
                found._ask(crew, entrant, f"samples, batch {index}", one)
            found.samples = len(found.inputs)
        if request.expected is not None:
            # Nobody knows what is right for inputs that were made up.
            found.answers = found._cut(request.expected)
            found.decisive = len(found.inputs)
            return found._checked(request)
        for heat in heats:
            for index, one in enumerate(heat.variants):
                found._ask(crew, entrant, f"{heat.rows} rows, variant {index}", one)
        edges = [one for one in gate_inputs(profile, signature, sizes) if one[0].startswith(_EDGE)]
        edges.sort(key=lambda one: one[0] == _ZEROS)  # last
        for key, one in edges:
            if key == _ZEROS:
                found.decisive = len(found.inputs)
            found._ask(crew, entrant, key, one)
        return found._checked(request)

    def _checked(self, request: Request) -> Yardstick:
        """Refuses labels or samples of which metrics cannot be computed: no arm's failure."""
        if request.gate.metrics:
            names = {name: name for name in self.answers[0]}
            request.gate.check(
                self.answers,
                self.answers,
                names,
                tier="strict",
                labels=request.labels,
                scored=self.samples or None,
            )
        return self

    def match_inputs(self, entrant: Entrant) -> None:
        """Finds out which of the arm's inputs are which of the reference's.

        Raises:
            InputError: An input of the arm has no counterpart.
        """
        assert entrant.signature is not None
        given = tuple(self.inputs[0])
        names = match_inputs(self.signature, entrant.signature, given)
        if any(mine != ours for mine, ours in names.items()) or set(names) != set(given):
            entrant.inputs = names

    def judge(self, entrant: Entrant, results: Sequence[Arrays], request: Request) -> str | None:
        """Sets what the gate sees of an arm; why it may not win, ``None`` if it may.

        Args:
            entrant: The arm.
            results: Its outputs for ``inputs``, by its own names.
            request: What is selected, with the gate.

        Raises:
            InputError: Labels do not suit the metrics.
        """
        assert entrant.signature is not None
        pairs = match_outputs(
            self.signature, entrant.signature, self.answers[0], results[0], request.output_map
        )
        names = {mine: ours for mine, ours in pairs.items() if ours is not None}
        if any(mine != ours for mine, ours in names.items()):
            entrant.outputs = names
        count, tier = self.decisive, entrant.plan.tier
        found = request.gate.check(
            self.answers[:count],
            results[:count],
            names,
            tier=tier,
            labels=request.labels,
            scored=self.samples or None,
            keys=self.keys,
        )
        entrant.agreement, entrant.metrics = found.outputs, found.metrics
        if entrant.is_reference and request.expected is None:
            return None
        if not found.passes:
            return found.reason
        if not self.answers[count:]:
            return None
        # Many models amplify rounding without bound on zeros (silence, once it is normalised,
        # is noise), so that numbers alone decide nothing there; they are mentioned.
        zeros = request.gate.check(
            self.answers[count:],
            results[count:],
            names,
            tier=tier,
            has_metrics=False,
            keys=self.keys[count:],
        )
        if zeros.passes:
            return None
        if any(one.excess is None and not one.passes for one in zeros.outputs):
            return zeros.reason
        self._on_zeros.setdefault(zeros.reason, []).append(entrant.id)
        return None

    def remarks(self) -> list[str]:
        """Sentences for the record's warnings: edges left out, and numbers on zeros."""
        found = list(self.notes)
        for reason, arms in self._on_zeros.items():
            more = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
            found.append(f"{arms[0]}{more}, on inputs of zeros, which decide nothing: {reason}")
        return found

    def _ask(self, crew: Crew, entrant: Entrant, key: str, inputs: Arrays) -> None:
        """One answer of the reference; an edge on which it fails is left out."""
        try:
            answer = crew.predict(entrant, inputs)[0]
        except (WorkerDied, PredictTimeout):
            raise
        except BridgeError as error:
            if not key.startswith(_EDGE):
                raise
            self.notes.append(f"the gate leaves out {key[len(_EDGE) :]}: {error.message}")
            return
        self.keys.append(key)
        self.inputs.append(inputs)
        self.answers.append(answer)

    def _cut(self, expected: Arrays) -> list[Arrays]:
        """The caller's right outputs, cut into the batches of the samples."""
        if not self.answers:
            raise InputError(
                "expected outputs were given, but no samples that they belong to.",
                fix="Pass the samples as well.",
            )
        found: list[Arrays] = []
        start: dict[str, int] = dict.fromkeys(self.answers[0], 0)
        for answer in self.answers:
            piece = {}
            for name, array in answer.items():
                whole = expected.get(name, expected.get("") if len(answer) == 1 else None)
                rows = len(array) if array.ndim else 1
                part = None if whole is None else whole[start[name] : start[name] + rows]
                if part is None or part.shape != array.shape:
                    got = "nothing" if part is None else f"shape {part.shape}"
                    raise InputError(
                        f"the expected outputs have {got} for '{name}' from row {start[name]} on; "
                        f"wanted {array.shape}.",
                        fix="Give one array for each output, with one row for each sample.",
                        output=name,
                    )
                # Others may have computed them in more digits than the model answers in.
                is_number = part.dtype.kind == "f" and array.dtype.kind == "f"
                piece[name] = part.astype(array.dtype) if is_number else part
                start[name] += rows
            found.append(piece)
        return found
