"""What a history is held to when it has ended: nothing is still held, and the ledger agrees with the meter."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from actors.messages import Failure, Result

if TYPE_CHECKING:
    from tests.simulation.house import History

__all__ = ["leaks", "wrong_in_the_end"]

SLACK_S = 5.0


def leaks(history: "History") -> list[str]:
    """What the actors still hold, though nobody asks for anything."""
    found = []

    def look(what: str, number: int) -> None:
        if number:
            found.append(f"{what}: {number}")

    for node in (node for tier in history.tiers for node in tier):
        health = node.actor.health()
        look(f"{node.name} calls in flight", health.in_flight)
        look(f"{node.name} calls queued", health.queued)
        look(f"{node.name} lane items", node.actor._server.outstanding)
    look("keys in the coalescing table", len(history.coalescer.actor._table))
    look("coalescer lane items", history.coalescer.actor._server.outstanding)
    for node in history.routers:
        router = node.actor
        book = router._purse._book
        look(f"{node.name} waits for budget", router._purse.waiting)
        look(f"{node.name} waits in the book", sum(bool(held.waiting) for held in book._accounts.values()))
        look(f"{node.name} reservations", len(book._open))
        look(f"{node.name} lanes that are down", sum(not lane.up for lane in router._lanes()))
        look(f"{node.name} lane items", sum(lane.outstanding for lane in router._lanes()))
        hedger = router._hedger
        if hedger is not None:
            look(f"{node.name} first copies", sum(len(calls) for known in hedger._known for calls in known.under_way))
            look(f"{node.name} attempts that may be hedged", hedger._making)
        look(f"{node.name} calls counted", sum(actor.outstanding for tier in router._states for actor in tier.actors))
    look("bills to come", sum(endpoint.pending for endpoint in history.endpoints))
    return found


def wrong_in_the_end(history: "History", snapshot: Any) -> Iterator[tuple[str, str]]:
    """Promises that the ended history has not kept: (kind, what happened)."""
    yield from _ends(history)
    yield from _books(history, snapshot)
    if history.scenario.happy:
        yield from _happy(history)


def _ends(history: "History") -> Iterator[tuple[str, str]]:
    if len(history.ended) != len(history.scenario.plans):
        yield "end", f"{len(history.scenario.plans)} requests have {len(history.ended)} ends"
    for how, plan, ask, done, took_s in history.ended:
        if history.scenario.calm and took_s > plan.deadline_s + SLACK_S:
            yield "hang", f"{ask.request.id} took {took_s:.1f} s, with a deadline of {plan.deadline_s:g} s"
        match done:
            case Result():
                answered = _answers(done.body)
                same = answered == ask.plan if plan.schema else _same(history, answered, ask.request.digest, ask.number)
                if not same:
                    yield "end", f"{ask.request.id} has the answer of another: {done.body!r}"
            case Failure():
                if done.kind == "internal":
                    yield "trouble", f"{ask.request.id}: {done.message}"
            case None:
                if how == "cancelled" and plan.cancel_after_s is None:
                    yield "end", f"{ask.request.id} was cancelled by nobody"
                if how == "lost" and not history.troubled:
                    yield "end", f"{ask.request.id} was lost, and no router died"


def _answers(body: bytes) -> int:
    at = body.index(b'"content":"') + 11
    return int(body[at : body.index(b'"', at)])


def _same(history: "History", answered: int, digest: bytes, number: int) -> bool:
    return answered == number or (bool(digest) and history.asks[answered].request.digest == digest)


def _books(history: "History", snapshot: Any) -> Iterator[tuple[str, str]]:
    """The ledger's totals beside the meter's."""
    limited = {limit.scope for limit in history.scenario.limits}
    seen_by_all = not history.troubled and not history.network.dropped and not history.network.broken
    told_all = not any(endpoint.unknown for endpoint in history.endpoints)
    not_seen_to_the_end = ("lost", "cancelled")  # else nobody knows what it cost
    waited = not any(
        attempt.kind in not_seen_to_the_end for end in history.ended if end.done for attempt in end.done.attempts
    )
    exact = history.scenario.calm and seen_by_all and told_all and waited
    for row in snapshot.limits:
        if row.overrun:
            yield (
                "books",
                f"{row.scope} per {row.window}: an overrun of {row.overrun} {row.unit}, and every call was bounded",
            )
        if row.window != "total" or not (row.scope in limited or exact):
            continue
        tokens, _ = history.meter.used.get((row.scope, "total", 0), (0, 0))
        billed = tokens if row.unit == "tokens" else history.meter.micros.get(row.scope, 0)
        if row.spent < billed:
            yield "books", f"{row.scope}: the ledger has {row.spent} {row.unit}, the meter {billed}"
        if row.spent - row.unknown > billed:
            yield "books", f"{row.scope}: {row.spent - row.unknown} {row.unit} known as spent, the meter has {billed}"
        if exact and (row.spent != billed or row.unknown):
            yield "books", f"{row.scope}: {row.spent} {row.unit} spent ({row.unknown} unknown), the meter has {billed}"
    if exact:
        for scope, window, period in history.meter.used:
            if window == "total" and not any((row.scope, row.window) == (scope, window) for row in snapshot.limits):
                yield "books", f"{scope} {period}: billed, and the ledger does not know it"


def _happy(history: "History") -> Iterator[tuple[str, str]]:
    """Nothing failed and everything was allowed: all succeed, and equal requests make one call at a time."""
    for _, _, ask, done, _ in history.ended:
        if not isinstance(done, Result):
            yield "happy", f"{ask.request.id} did not succeed: {done}"
    if not history.scenario.coalesce.enabled or history.scenario.router.hedge is not None:
        return
    calls: dict[bytes, int] = {}
    for endpoint in history.endpoints:
        if endpoint.most_equal > 1:
            yield "coalescing", f"{endpoint.most_equal} equal calls at once"
        for digest, number in endpoint.calls_by_digest.items():
            calls[digest] = calls.get(digest, 0) + number
    for digest, number in calls.items():
        own = sum(
            isinstance(e.done, Result) and not e.done.coalesced and e.ask.request.digest == digest
            for e in history.ended
        )
        if own != number:
            yield "coalescing", f"{number} calls for {digest!r}, but {own} answers of their own"
