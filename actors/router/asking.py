"""Structured output: ask until the answer satisfies the request's schema.

Stands between the claim and the cascade (actors/router/flow.py): every ask is a whole cascade of its own, within the
request's one deadline, and pays for itself. The rules of parsing and re-asking are in actors/router/structured.py.
"""

from collections.abc import Awaitable, Callable

from actors.messages import Amount, Failure, Request, Result
from actors.router.plan import Past
from actors.router.structured import Parsed, ask_again, content_of, parse_reply, validator_of

__all__ = ["Cascade", "ask"]

STRUCTURED_RETRIES = 2
Cascade = Callable[[Request, Past, Amount], Awaitable[Result | Failure]]
"""Asks tiers until one answers; the amount is what the request has cost before."""


async def ask(request: Request, past: Past, cascade: Cascade) -> Result | Failure:
    """Ask until the answer satisfies the request's schema, within `STRUCTURED_RETRIES` and the same deadline."""
    done = await cascade(request, past, Amount())
    if not request.schema:
        return done
    asked = request
    for tries_left in range(STRUCTURED_RETRIES, -1, -1):
        if isinstance(done, Failure):
            return done
        reply = content_of(done.body) or ""
        parsed = parse_reply(reply)
        errors = validator_of(request.schema).errors(parsed.value) if isinstance(parsed, Parsed) else [parsed.reason]
        if isinstance(parsed, Parsed) and not errors:
            return done._replace(parsed=parsed.value)
        attempts = (*done.attempts[:-1], done.attempts[-1]._replace(misfit=True))
        if not tries_left:
            return Failure(
                "invalid_output",
                f"the answer does not satisfy the schema after {STRUCTURED_RETRIES + 1} tries: {'; '.join(errors)}"[
                    :600
                ],
                status=done.status,
                body=done.body,
                attempts=attempts,
                cost=done.cost,
                own_fault=False,
            )
        body = ask_again(request.body, reply, errors)
        asked = request._replace(
            body=body, prompt_bound_tokens=request.prompt_bound_tokens + len(body) - len(request.body)
        )
        again = Past(len(past.strikes), past.deadline)
        again.attempts = list(attempts)
        done = await cascade(asked, again, done.cost)
    raise AssertionError("unreachable")
