"""A stream of the Responses API on its way to an HTTP client: each event under its type's name, and no `[DONE]`."""

import orjson

from actors.tier.sse import frame
from runtime.gateway.sse import Outgoing

__all__ = ["OutgoingEvents"]

FIRST = b'{"type":"'


class OutgoingEvents(Outgoing):
    """As Outgoing. The stream ends with `response.completed`, or with an `error` event: the client's library raises it."""

    done = b""

    def framed(self, data: bytes) -> bytes:
        if data.startswith(FIRST):  # as OpenAI's servers have it
            kind = data[len(FIRST) : data.index(b'"', len(FIRST))]
        else:
            kind = orjson.loads(data)["type"].encode()
        return b"event: %b\n%b" % (kind if kind.isascii() and kind.decode().isprintable() else b"message", frame(data))

    def error(self, body: bytes) -> bytes:
        # The API's reference has the fields in the event itself, its servers send an object: clients read the one or other.
        error = orjson.loads(body)["error"]
        event = {"type": "error", "code": error["code"], "message": error["message"], "param": error["param"]}
        return b"event: error\n" + frame(orjson.dumps({**event, "error": error}))
