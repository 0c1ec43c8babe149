"""From a streamed reply to its story: the loop between the transport, the events and the rules of a stream.

The tier actor iterates over it, and passes on what comes; it decides nothing itself.
"""

import asyncio
from collections.abc import AsyncGenerator

from actors.messages import Failure
from actors.tier.sse import EventParser
from actors.tier.stream_rules import USAGE_GRACE_S, Broken, Complete, Delta, StreamReader
from actors.tier.transport import Streamed, TransportError, leave

__all__ = ["follow"]


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
            await leave(streamed)
        else:
            await streamed.aclose()
