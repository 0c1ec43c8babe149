"""One streamed call of a tier: from the transport's bytes to what the caller is told, as it comes.

    transport.stream    bytes, cut anywhere            (transport.py)
      EventParser       the data of each event         (sse.py)
        StreamReader    what it says, and when it ends (stream_rules.py)
          say           the deltas of one read, together

Nothing is said before the first part of an answer: an endpoint that accepts, greets and then falls silent has said
nothing that another tier could not say instead. An endpoint that answers a stream with one whole reply has that reply
said as a single delta.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from actors.messages import Answer, Chunk, Failure, Streaming, StreamTerms, TierCall
from actors.tier.classify import Whole, classify_error, classify_reply
from actors.tier.response_events import ResponseReader, as_events, is_responses
from actors.tier.sse import EventParser
from actors.tier.stream_rules import (
    USAGE_GRACE_S,
    Broken,
    Complete,
    Delta,
    StreamReader,
    as_delta,
    ask_usage,
    is_stream,
)
from actors.tier.transport import Reply, Streamed, Transport, TransportError, leave, read_whole

__all__ = ["follow", "stream_call"]

LEAVE_S = 0.1
"""How long the end of a finished answer's body may take before its connection is given up: its caller waits meanwhile."""

Say = Callable[[list[Chunk]], object]
Advised = Callable[[Mapping[str, str]], object]


async def stream_call(
    transport: Transport,
    call: TierCall,
    terms: StreamTerms,
    endpoint: int,
    secrets: Sequence[str],
    say: Say,
    advised: Advised = lambda headers: None,
) -> Answer | Failure:
    """Make a streamed call. `say` gets the chunks of each read, `advised` the reply's headers. Cancelling closes the
    connection."""
    began = time.monotonic()
    reader: StreamReader
    if is_responses(call.path):
        body, usage_for_caller = call.body, True
        reader = ResponseReader(call.path, secrets)
    else:
        body, usage_for_caller = ask_usage(call.body)
        reader = StreamReader(call.path, terms.choices, usage_for_caller, True, secrets)
    first_s = min(call.timeout_s, terms.first_token_timeout_s)
    status, first_token_s = 0, 0.0
    held: list[Chunk] = []
    ended: Complete | Broken
    try:
        async with asyncio.timeout(call.timeout_s):
            streamed = await transport.stream(call.path, body, first_s, terms.stall_timeout_s)
            status = streamed.status
            advised(streamed.headers)
            if not is_stream(status, streamed.headers):
                reply = await read_whole(streamed, first_s)
                return _whole(reply, call, endpoint, secrets, usage_for_caller, time.monotonic() - began, say)
            async for step in follow(streamed, reader, max(0.001, began + first_s - time.monotonic())):
                if isinstance(step, list):
                    held += [Chunk(delta.data, delta.text) for delta in step]
                    if first_token_s or reader.finished or any(delta.said for delta in step):
                        first_token_s = first_token_s or max(1e-6, time.monotonic() - began)
                        say(held)
                        held = []
                else:
                    ended = step
    except TransportError as error:
        return classify_error(error, secrets)._replace(endpoint=endpoint)
    except TimeoutError:
        ended = reader.lost(TransportError("timeout", f"no end within {call.timeout_s:g} s", sent=True))
    if isinstance(ended, Broken):
        return ended.failure._replace(endpoint=endpoint)
    took_s = time.monotonic() - began
    streaming = Streaming(first_token_s or took_s, reader.most_tokens, reader.said_tokens, ended.malformed)
    return Answer(b"", status, ended.usage, ended.model, took_s, endpoint, streaming)


def _whole(
    reply: Reply,
    call: TierCall,
    endpoint: int,
    secrets: Sequence[str],
    usage_for_caller: bool,
    took_s: float,
    say: Say,
) -> Answer | Failure:
    """An error, or an answer that came in one piece after all."""
    outcome = classify_reply(reply.status, reply.headers, reply.body, call.path, time.time(), secrets)
    if not isinstance(outcome, Whole):
        return outcome._replace(endpoint=endpoint)
    if is_responses(call.path):
        say([Chunk(event, "") for event in as_events(reply.body)])
    else:
        say([Chunk(*as_delta(reply.body, usage_for_caller))])
    streaming = Streaming(took_s, len(reply.body), 1, 0)
    return Answer(b"", reply.status, outcome.usage, outcome.model, took_s, endpoint, streaming)


async def follow(
    streamed: Streamed, reader: StreamReader, first_token_timeout_s: float | None = None
) -> AsyncGenerator[list[Delta] | Complete | Broken, None]:
    """The deltas, as many at a time as came together, and at last one `Complete` or `Broken`.

    `first_token_timeout_s`: so long from now for the first delta that says something. Closes the stream, whether it was
    followed to its end or left; an answer that is finished keeps its connection where the body ends right behind it.
    """
    parser = EventParser()
    end: Complete | Broken | None = None
    loop = asyncio.get_running_loop()
    by = None if first_token_timeout_s is None else loop.time() + first_token_timeout_s
    """Until when the first token, and later the usage, is waited for; in between the transport's stall counts alone."""
    ending = False
    try:
        while end is None:
            steps: list[Delta] = []
            try:
                if by is None:
                    piece = await anext(streamed, None)
                else:
                    async with asyncio.timeout_at(by):
                        piece = await anext(streamed, None)
                for data in parser.end() if piece is None else parser.feed(piece):
                    step = reader.feed(data)
                    if isinstance(step, Delta):
                        steps.append(step)
                        if step.said and not ending:
                            by = None
                    elif isinstance(step, Failure) or reader.done:
                        break
                if piece is None or reader.over or reader.failed:
                    end = reader.finish()
                elif reader.finished and not ending:
                    ending, by = True, loop.time() + USAGE_GRACE_S
            except TransportError as error:
                end = reader.lost(error)
            except TimeoutError:
                late = f"no token came within {first_token_timeout_s or 0:g} s"
                end = reader.finish() if reader.finished else reader.lost(TransportError("timeout", late, sent=True))
            if steps:
                yield steps
        yield end
    finally:
        if isinstance(end, Complete):
            await leave(streamed, LEAVE_S)
        else:
            await streamed.aclose()
