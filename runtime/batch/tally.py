"""What a run has done so far: counted from the rows' own results, for the progress line, the summary and the report."""

from collections import Counter

from actors.messages import Failure, Result
from actors.router.flow import RouterNote

__all__ = ["Tally"]


class Tally:
    """Counts of this run of the program (not of earlier runs of the same job)."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.coalesced = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost_usd_micros = 0
        self.saved_tokens = 0
        """Tokens that equal rows did not cost because they shared a call."""
        self.served: Counter[str] = Counter()
        """Rows by the tier that answered, shared ones not counted."""
        self.tier_tokens: Counter[str] = Counter()
        self.attempts: Counter[tuple[str, str]] = Counter()
        """Attempts by (tier, kind)."""
        self.moved_on = 0
        """Rows that were answered by another tier than the first that was asked for them."""
        self.asked_again = 0
        """Rows that needed more than one attempt."""
        self.codes: Counter[str] = Counter()
        """Failed rows by error code."""
        self.redone = 0
        """Rows that were sent again because an actor died with them."""
        self.notes: dict[str, RouterNote] = {}
        """The last note of each router."""
        self.opened: Counter[str] = Counter()
        """How often breakers have opened, by tier."""
        self._opened_seen: dict[tuple[str, int], int] = {}

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    def result(self, result: Result) -> None:
        """Count a row that led its own call."""
        self.succeeded += 1
        self.prompt_tokens += result.usage.prompt_tokens
        self.completion_tokens += result.usage.completion_tokens
        self.cost_usd_micros += result.cost.usd_micros
        self.served[result.tier] += 1
        self.tier_tokens[result.tier] += result.usage.total_tokens
        attempts = result.attempts
        for attempt in attempts:
            self.attempts[attempt.tier, attempt.kind] += 1
        if len(attempts) > 1:
            self.asked_again += 1
            self.moved_on += attempts[0].tier != result.tier

    def shared(self, tokens: int) -> None:
        """Count a row that had another row's answer."""
        self.succeeded += 1
        self.coalesced += 1
        self.saved_tokens += tokens

    def failure(self, code: str, failure: Failure | None) -> None:
        self.failed += 1
        self.codes[code] += 1
        if failure is not None:
            self.cost_usd_micros += failure.cost.usd_micros
            for attempt in failure.attempts:
                self.attempts[attempt.tier, attempt.kind] += 1

    def note(self, router: str, note: RouterNote) -> None:
        """Take in a router's note. An actor that restarted counts from zero again; what it opened before stays counted."""
        self.notes[router] = note
        for tier in note.tiers:
            for index, health in enumerate(tier.actors):
                seen = self._opened_seen.get((tier.name, index), 0)
                if health.opened > seen:
                    self.opened[tier.name] += health.opened - seen
                self._opened_seen[tier.name, index] = health.opened
