"""The table of kinds is whole, and the tables that name kinds agree with it."""

from typing import get_args

import pytest

from actors.kinds import KINDS
from actors.messages import FailureKind
from actors.tier.rules import RULES, UNFINISHED

OF_A_REQUEST = {"all_tiers_exhausted", "no_tier", "deadline", "runaway_loop", "invalid_output", "broken_stream"}


def test_every_kind_an_attempt_can_end_in_has_its_line() -> None:
    """A kind that is added must say what it means for the request, the breaker and the callers who share it."""
    assert set(KINDS) == set(get_args(FailureKind)) - OF_A_REQUEST
    assert {rule.kind for rule in RULES} | set(UNFINISHED.values()) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_agree(kind: FailureKind) -> None:
    """What is the request's own doing counts against no endpoint; what is tried again somewhere is nobody's request."""
    line = KINDS[kind]
    assert line.breaker == "neutral" or line.fault == "endpoint"
    if line.fault == "request":
        assert line.then in ("larger", "refused", "final")
    if line.then in ("again", "elsewhere"):
        assert line.counts, "what is tried again must be bounded by max_attempts"
