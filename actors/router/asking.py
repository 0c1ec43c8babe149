"""Structured output: ask until the answer satisfies the request's schema.

Stands between the claim and the cascade (actors/router/flow.py): every ask is a whole cascade of its own, within the
request's one deadline, and pays for itself. The rules of reading a reply are in structured.py, what is said to
the model in demands.py.

    1st ask          the cascade, as for any request
    2nd              with the reply and its errors, at the tier that gave it
    3rd and later    the same, or with `escalate` one tier better each time

When the tries are used up, or budget or deadline do not allow another, the request has failed as `invalid_output`, with
the last reply and the reasons; only what a budget puts off is asked again as a whole, later. Every reply that was
refused is in the failure log (actors/router/failures.py).
"""

from collections.abc import Awaitable, Callable, Sequence

from actors.messages import Amount, Attempt, Failure, Request, Result
from actors.router.demands import ask_again
from actors.router.failures import FailureLog
from actors.router.plan import Past
from actors.router.structured import Parsed, parse_reply, reply_of, validator_of

__all__ = ["Cascade", "ask"]

Cascade = Callable[[Request, Past, Amount], Awaitable[Result | Failure]]
"""Asks tiers until one answers; the amount is what the request has cost before."""


async def ask(
    request: Request, past: Past, cascade: Cascade, tiers: Sequence[str], log: FailureLog | None
) -> Result | Failure:
    """Ask until the answer satisfies the schema that the request has. `tiers`: the names of the cascade's, best first."""
    done = await cascade(request, past, Amount())
    refused = 0
    last: tuple[Result, list[str]] | None = None
    while isinstance(done, Result):
        reply, value, errors = _judged(request, done.body)
        if not errors:
            return done._replace(parsed=value, refused_replies=refused)
        refused += 1
        last = done, errors
        attempts = (*done.attempts[:-1], done.attempts[-1]._replace(misfit=True))
        if log is not None:
            log.write(request, done.tier, reply, errors)
        if refused > request.reply_retries:
            return _invalid(last, refused, attempts, done.cost, "")
        body = ask_again(request.body, reply, errors)
        tier = tiers.index(done.tier)
        again = Past(len(past.turns), past.deadline)
        again.attempts, again.excluded = list(attempts), past.excluded
        done = await cascade(
            request._replace(
                body=body,
                prompt_bound_tokens=request.prompt_bound_tokens + len(body) - len(request.body),
                start_tier=max(0, tier - 1) if request.escalate and refused > 1 else tier,
            ),
            again,
            done.cost,
        )
        past = again
    if last is None or done.resumable:
        return done._replace(refused_replies=refused)
    return _invalid(last, refused, done.attempts, done.cost, f"; not asked again: {done.message}")


def _judged(request: Request, body: bytes) -> tuple[str, bytes, list[str]]:
    """The reply's text, the JSON value in it, and what is wrong with it; no errors: it satisfies the schema."""
    reply = reply_of(body)
    if reply is None:
        return "", b"", ["the response is no chat completion"]
    if reply.calls_tool and request.response_format:
        return reply.text, b"", []  # the caller asked for tools as well, and one of them was chosen
    if reply.refusal:
        return reply.refusal, b"", [f"the model refused: {reply.refusal[:300]}"]
    parsed = parse_reply(reply.text)
    if not isinstance(parsed, Parsed):
        return reply.text, b"", [parsed.reason]
    return reply.text, parsed.value, validator_of(request.schema).errors(parsed.value)


def _invalid(
    last: tuple[Result, list[str]], refused: int, attempts: tuple[Attempt, ...], cost: Amount, why: str
) -> Failure:
    result, errors = last
    tries = "once" if refused == 1 else f"{refused} times"
    message = f"the answer does not satisfy the schema, asked {tries}: {'; '.join(errors)}"
    return Failure(
        "invalid_output",
        message[: 600 - min(len(why), 200)] + why[:200],
        status=result.status,
        body=result.body,
        attempts=attempts,
        cost=cost,
        refused_replies=refused,
    )
