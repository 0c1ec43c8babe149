"""`Client.parse`: an answer as an object of a pydantic class, asked for until the class takes it.

The router sees to the JSON Schema (actors/router/asking.py). What only the class can tell, such as its validators, is told here,
in the caller's process, and asked for again by the same rules: with the reasons, at the tier that answered, with `escalate` one tier
better from the second time on. Replies that the router refused and those that the class refused use up the same tries.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from openai.types.chat import ParsedChatCompletion
from pydantic import BaseModel, ValidationError

from actors.messages import Amount, Attempt, Failure, Request, Result
from actors.router.demands import ask_again
from actors.router.failures import FailureLog
from actors.router.structured import content_of
from runtime.client_values import failed, parsed
from runtime.routers import how

__all__ = ["parse"]

Model = TypeVar("Model", bound=BaseModel)


async def parse(
    kind: type[Model],
    request: Request,
    answer: Callable[[Request], Awaitable[Result]],
    tiers: Sequence[str],
    log: FailureLog,
) -> ParsedChatCompletion[Model]:
    """`answer` asks a router. `tiers`: their names, best first. Raises RequestFailed."""
    until = time.monotonic() + request.deadline_s
    retries, refused, spent = request.reply_retries, 0, Amount()
    attempts: tuple[Attempt, ...] = ()
    while True:
        result = await answer(request)
        refused += result.refused_replies
        spent, attempts = spent.plus(result.cost), (*attempts, *result.attempts)
        result = result._replace(cost=spent, attempts=attempts, refused_replies=refused)
        try:
            value = kind.model_validate_json(result.parsed)
            return parsed(kind, value, result.body, how(result, request.prompt))
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        refused += 1
        reply = content_of(result.body) or ""
        log.write(request, result.tier, reply, reasons)
        if refused > retries:
            break
        body = ask_again(request.body, reply, reasons)
        tier = tiers.index(result.tier)
        request = request._replace(
            body=body,
            digest=b"",
            prompt_bound_tokens=request.prompt_bound_tokens + len(body) - len(request.body),
            start_tier=max(0, tier - 1) if request.escalate and refused > 1 else tier,
            reply_retries=retries - refused,
            deadline_s=max(0.0, until - time.monotonic()),
        )
    asked = "once" if refused == 1 else f"{refused} times"
    said = f"{kind.__name__} refuses the answer, asked {asked}: {'; '.join(reasons)}"
    failure = Failure(
        "invalid_output", said[:600], status=result.status, body=result.body, attempts=attempts, cost=spent
    )
    raise failed(failure)
