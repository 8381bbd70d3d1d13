from __future__ import annotations

import json
import re

import pytest

from bridge import errors, message
from bridge.errors import BridgeError, ErrorRule, nearest, translate


def test_the_drawn_tree_is_the_real_tree() -> None:
    drawn = set(
        re.findall(r"\b([A-Z]\w+)\b", (errors.__doc__ or "").split("::")[1].split("A message")[0])
    )
    real = {"BridgeError", *errors.error_classes()}
    builtins = {name for name in drawn if name in dir(__builtins__) or name in __builtins__}
    assert drawn - builtins == real
    assert real <= set(errors.__all__)


@pytest.mark.parametrize(
    ("ours", "stdlib"),
    [
        (errors.ModelNotFound, FileNotFoundError),
        (errors.BackendUnavailable, ImportError),
        (errors.BackendNotFound, LookupError),
        (errors.OptionError, ValueError),
        (errors.InputError, ValueError),
        (errors.DTypeMismatch, TypeError),
        (errors.UntrustedModel, PermissionError),
        (errors.OutOfMemory, MemoryError),
        (errors.PredictTimeout, TimeoutError),
        (errors.PredictorClosed, RuntimeError),
    ],
)
def test_errors_are_caught_as_stdlib_errors(
    ours: type[BridgeError], stdlib: type[Exception]
) -> None:
    with pytest.raises(stdlib):
        raise ours("what went wrong.", fix="Do this.")


@pytest.mark.parametrize("kind", errors.error_classes().values(), ids=lambda kind: kind.__name__)
def test_every_class_keeps_its_text_and_crosses_a_process_border(kind: type[BridgeError]) -> None:
    error = kind(
        "what, wanted, got.", fix="Do this.", backend="b", model="m", device="cpu", extra=[1, "x"]
    )
    assert str(error) == "what, wanted, got. Do this."
    back = message.error_from(json.loads(json.dumps(message.error_to(error))))
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.backend, back.model, back.device) == ("b", "m", "cpu")
    assert back.detail == {"extra": [1, "x"]}


def test_nearest_offers_close_names_and_else_all() -> None:
    assert nearest("thread", ["threads", "arena"]) == "Did you mean 'threads'?"
    assert nearest("Input-1", ["input_1", "label"]) == "Did you mean 'input_1'?"
    assert nearest("zzz", ["threads", "arena"]) == "Valid are: 'arena', 'threads'."
    assert nearest("zzz", [f"n{i:02}" for i in range(20)]).endswith("and 8 more.")
    assert nearest("zzz", []) == "There are none."


def test_translate_takes_the_first_rule_that_fits() -> None:
    rules = (
        ErrorRule(
            RuntimeError,
            errors.UnsupportedModel,
            pattern=r"op (?P<operator>\w+)",
            message="operator '{operator}' is unknown.",
            fix="Avoid '{operator}'.",
        ),
        ErrorRule(RuntimeError, errors.InvalidModel),
    )
    special = translate(
        RuntimeError("no op Foo here"), rules, errors.PredictError, frame="tiny failed", model="m"
    )
    assert type(special) is errors.UnsupportedModel
    assert special.detail["operator"] == "Foo"
    assert special.detail["native_error"] == "no op Foo here"
    assert special.model == "m"
    assert str(special) == "operator 'Foo' is unknown. Avoid 'Foo'."
    assert (
        type(translate(RuntimeError("else"), rules, errors.PredictError, frame="tiny failed"))
        is errors.InvalidModel
    )
    other = translate(KeyError("else"), rules, errors.PredictError, frame="tiny failed")
    assert type(other) is errors.PredictError
    assert other.message == "tiny failed: KeyError: 'else'."
    assert other.fix == "The runtime's whole text is in detail['native_error']."


def test_translate_knows_memory_errors_and_keeps_our_own() -> None:
    assert type(translate(MemoryError(), (), errors.PredictError, frame="f")) is errors.OutOfMemory
    own = errors.OptionError("said already.")
    assert translate(own, (), errors.PredictError, frame="f") is own
