"""What a stream of the Responses API says: typed events, with `response.completed` as the end of a whole answer. Pure.

    response.created, response.in_progress ...    how it begins: nothing has been said yet
    response.output_text.delta and all others     the answer, passed on as it came
    response.completed                            the whole answer, with its usage
    response.incomplete                           the same, cut at the caller's own limit; else a failure
    response.failed, error                        a failure, by the same rules as a reply's (classify.py)

`[DONE]` does not exist here, and nothing is asked for to get the usage. The answer is not continued by another tier once
it has begun (actors/router/resume.py): its items have ids and numbers of their own.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from actors.messages import Failure
from actors.tier.stream_rules import Delta, StreamReader
from actors.tier.usage import reported_usage

__all__ = ["ResponseReader", "as_events", "is_responses"]

BEGINNINGS: Final = frozenset(
    {
        "keepalive",
        "response.content_part.added",
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.queued",
        "response.reasoning_summary_part.added",
    }
)
"""Events that say nothing of an answer: another tier may still be asked."""
ENDS: Final = frozenset({"response.cancelled", "response.completed", "response.failed", "response.incomplete"})


def is_responses(path: str) -> bool:
    return path.partition("?")[0].rstrip("/").endswith("/responses")


class ResponseReader(StreamReader):
    """As StreamReader, for the events of the Responses API."""

    __slots__ = ()
    _END = "response.completed"

    def __init__(self, path: str, secrets: Sequence[str] = ()) -> None:
        super().__init__(path, 1, True, False, secrets)

    def feed(self, data: bytes) -> Delta | Failure | None:
        """What is to be done about an event: pass it on, end with a failure, or nothing."""
        if self.done or self._failure is not None:
            return self._failure
        if not data or data.strip() == b"[DONE]":
            self.done = bool(data)
            return None
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._pass_over()
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "error" or (isinstance(event, dict) and event.get("error")):
            failure = self._classified(data if event.get("error") else b'{"error":%b}' % data)
            return self._fail(failure or Failure("malformed", "the stream ended with an error that says nothing"))
        if not isinstance(kind, str):
            return self._pass_over()
        if kind == "ping":
            return None
        self._seen.add(0)
        if kind in ENDS:
            return self._ended_as(kind, event.get("response"), data)
        self._open.add(0)
        part = event.get("delta")
        if part:
            self._deltas += 1
            self._bytes += len(part.encode()) if isinstance(part, str) else len(orjson.dumps(part))
        return Delta(data, "", kind not in BEGINNINGS)

    def _ended_as(self, kind: str, response: Any, data: bytes) -> Delta | Failure | None:
        if not isinstance(response, dict):
            return self._pass_over()
        model = response.get("model")
        self.model = model[:128] if isinstance(model, str) else ""
        self._usage = reported_usage(response)
        failure = self._classified(orjson.dumps({"status": kind.removeprefix("response."), **response}))
        # One that was filtered in its middle ends so for its caller too, as a chat does.
        if failure is not None and not (failure.kind == "content_filter" and self._deltas):
            return self._fail(failure)
        self._open.discard(0)
        return Delta(data, "", True)


def as_events(body: bytes) -> list[bytes]:
    """A whole response as the events of a stream: for an endpoint that answers in one piece after all."""
    response = orjson.loads(body)
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    for at, item in enumerate(_objects(response.get("output"))):
        place = {"output_index": at}
        content = _objects(item.get("content"))
        empty: dict[str, Any] = {"content": []} if content else {}
        events.append(
            {"type": "response.output_item.added", **place, "item": {**item, **empty, "status": "in_progress"}}
        )
        for index, part in enumerate(content):
            if part.get("type") == "output_text":
                here = {**place, "item_id": item.get("id"), "content_index": index}
                text = part.get("text") or ""
                events += [
                    {"type": "response.content_part.added", **here, "part": {**part, "text": ""}},
                    {"type": "response.output_text.delta", **here, "delta": text, "logprobs": []},
                    {"type": "response.output_text.done", **here, "text": text, "logprobs": []},
                    {"type": "response.content_part.done", **here, "part": part},
                ]
        events.append({"type": "response.output_item.done", **place, "item": item})
    events.append({"type": f"response.{response['status']}", "response": response})
    return [orjson.dumps({**event, "sequence_number": number}) for number, event in enumerate(events)]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
