"""The list of known failures is itself checked."""

from __future__ import annotations

import pytest

from bridge_conformance.selection import collected_ids, suite_classes
from bridge_conformance.subject import Subject


@pytest.mark.builds
class TestKnownFailures:
    """The backend's list of known failures names real tests."""

    def test_every_id_is_a_test(self, subject: Subject, request: pytest.FixtureRequest) -> None:
        """Every listed id is that of a test."""
        ids = collected_ids(request.config, subject)
        # What is left out as a whole, by quick mode or by choice, cannot be looked at.
        unseen = set(suite_classes()) - {test.partition("::")[0] for test in ids}
        # Nor what stands for cases that are not there: no backend for them, or not built.
        unseen |= {
            test.partition("::")[0] for test in ids if test.endswith(("[any]", "[not-built]"))
        }
        listed = set(subject.known_failures)
        unknown = sorted(test for test in listed - ids if test.partition("::")[0] not in unseen)
        assert not unknown, f"known_failures.toml names tests that there are not: {unknown}"
