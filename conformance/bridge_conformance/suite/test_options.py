"""Options: every one that a search would try is legal, and changes no result."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from bridge.errors import OptionError
from bridge.loading import open_model
from bridge.search import Pruned
from bridge_conformance.claims import full
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.subject import Subject


class TestOptions:
    """Options are typed, documented, and legal where the backend offers them."""

    @pytest.mark.builds
    def test_are_documented(self, subject: Subject) -> None:
        """Every option has a help text that is a sentence, and a default that is legal."""
        kind = subject.backend.options_type
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help", "").strip(), field.name
        assert kind() == kind.make(None)
        json.dumps(kind().to_dict())

    @pytest.mark.builds
    def test_wrong_type(self, subject: Subject) -> None:
        """A value of the wrong type raises OptionError, which names the option."""
        for field in dataclasses.fields(subject.backend.options_type):
            with pytest.raises(OptionError, match=field.name):
                subject.backend.options_type.make({field.name: object()})

    def test_default_comes_first(self, subject: Subject) -> None:
        """What is worth measuring begins with the default, and has nothing twice."""
        space = subject.backend.search_space(open_model(subject.path("affine")), subject.device)
        legal = [options for options in space if not isinstance(options, Pruned)]
        assert legal
        assert legal[0] == subject.backend.options_type()
        assert len(set(legal)) == len(legal)
        for left_out in space:
            if isinstance(left_out, Pruned):
                assert left_out.rule
                assert left_out.reason

    @full
    def test_search_space(self, subject: Subject) -> None:
        """All that is worth measuring loads, shows in ``info``, and answers the same.

        Options of reduced precision are left to the gate of a selection.
        """
        network = subject.network("math_float32")
        subject.require("math_float32")
        path = subject.path("math_float32")
        inputs = network.inputs_for(rows=4)
        space = subject.backend.search_space(open_model(path), subject.device)
        for options in space:
            if isinstance(options, Pruned) or options.tier != "strict":
                continue
            with subject.open(path, options=options) as predictor:
                assert_outputs(predictor.predict(inputs), network.oracle(inputs))
                assert dict(predictor.info.options) == options.to_dict()

    def test_as_texts(self, subject: Subject, load: Any) -> None:
        """Options may be given as texts of the form key=value, none of them included."""
        network = subject.network("affine")
        inputs = network.inputs_for()
        predictor = load("affine", options=[])
        assert_outputs(predictor.predict(inputs), network.oracle(inputs))
        with pytest.raises(OptionError):
            subject.open(subject.path("affine"), options=["without-a-value"]).close()
