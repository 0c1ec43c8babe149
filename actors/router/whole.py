"""A stream whose answer must satisfy a schema: asked for as a whole, judged, and only then said, in one piece.

Who reads words as they come could not be told afterwards that they were wrong. Pure; Router.stream uses it.
"""

import orjson

from actors.messages import Chunk, Request, Result
from actors.router.structured import content_of
from actors.tier.stream_rules import as_delta

__all__ = ["asked_whole", "bare", "said_whole"]


def asked_whole(request: Request) -> Request:
    """The same request as one that is not streamed: it shares its call with those."""
    body = request.body
    if b'"stream_options"' in body:
        fields = orjson.loads(body)
        fields.pop("stream_options", None)
        body = orjson.dumps(fields)
    return request._replace(stream=False, body=body)


def said_whole(request: Request, result: Result) -> list[Chunk]:
    """The answer as a stream says it; with usage only for who asked for it."""
    usage = False
    if b'"include_usage"' in request.body:
        options = orjson.loads(request.body).get("stream_options")
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return [Chunk(*as_delta(bare(result), usage))]


def bare(result: Result) -> bytes:
    """The answer's body with the accepted JSON value as its content, without the fences and words that stood around it."""
    if not result.parsed or content_of(result.body) == (value := result.parsed.decode()):
        return result.body
    body = orjson.loads(result.body)
    body["choices"][0]["message"]["content"] = value
    return orjson.dumps(body)
