"""A request on its way to its outcome: it waits for a slot and its latency, then is answered or broken as decided."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from runtime.mock.ask import Ask, Route
from runtime.mock.behaviour import Behaviour
from runtime.mock.exchange import Exchange
from runtime.mock.gates import Slots, retry_after
from runtime.mock.shapes import Made, error_body
from runtime.mock.sse import Events, stamp
from runtime.mock.stats import TierStats
from runtime.mock.stream import Flood, Stream

__all__ = ["Call", "Kind"]

_HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"
_BLANK = b" " * 62_500
_HUGE_BLOCKS = 1600
_TRICKLE_PER_S = 10.0


class Kind(NamedTuple):
    """An endpoint: its path below /v1/, how its body is read and its answer made."""

    path: bytes
    read: Route
    make: Callable[[Ask, Behaviour, bytes, int], Made]
    events: Callable[[Ask, Behaviour, bytes, int], Events] | None = None


class Call:
    """Ends once: answered, broken, or abandoned by the client."""

    __slots__ = (
        "_ask",
        "_behaviour",
        "_exchange",
        "_gone",
        "_headers",
        "_id",
        "_kind",
        "_slots",
        "_stats",
        "_stream",
        "_timer",
    )

    def __init__(
        self,
        stats: TierStats,
        kind: Kind,
        exchange: Exchange,
        ask: Ask,
        behaviour: Behaviour,
        id_: bytes,
        headers: bytes,
    ) -> None:
        self._stats, self._kind, self._exchange, self._ask = stats, kind, exchange, ask
        self._behaviour, self._id, self._headers = behaviour, id_, headers
        self._slots: Slots | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stream: Stream | Flood | None = None
        self._gone = False

    def queue(self, slots: Slots) -> None:
        self._exchange.on_gone = self._abandon

        def start() -> bool:
            if self._gone:
                return False
            self._slots = slots
            self.start()
            return True

        slots.enter(start)

    def start(self) -> None:
        if self._behaviour.latency_s > 0:
            self._exchange.on_gone = self._abandon
            self._timer = asyncio.get_running_loop().call_later(self._behaviour.latency_s, self.finish)
        else:
            self.finish()

    def finish(self) -> None:
        behaviour, exchange, stats = self._behaviour, self._exchange, self._stats
        match behaviour.outcome:
            case "error":
                self._answer_error()
            case "reset":
                self._broken()
                exchange.reset()
            case "html":
                exchange.reply(200, _HTML, self._headers, b"text/html; charset=utf-8")
                self._answered()
            case "redirect":
                exchange.reply(307, b"", self._headers + b"Location: /redirected/v1/%b\r\n" % self._kind.path)
                self._answered(307)
            case _ if self._ask.stream and self._kind.events is not None:
                self._answer_stream(self._kind.events(self._ask, behaviour, self._id, int(time.time())))
            case "reset_mid_body":
                self._broken()
                exchange.cut(self._make().body, self._headers)
            case "malformed":
                body = self._make().body
                exchange.reply(200, body[: len(body) // 2], self._headers)
                self._answered()
            case "stall":
                stats.hangs += 1
                body = self._make().body
                exchange.on_gone = self._abandon
                exchange.start_body(len(body), self._headers)
                exchange.write(body[: len(body) // 2])
            case "trickle" | "huge":
                self._answer_in_pieces(self._make())
            case _:
                made = self._make()
                if behaviour.outcome == "mislabeled":
                    exchange.reply(200, made.body, self._headers, b"text/plain; charset=utf-8")
                else:
                    exchange.reply(200, made.body, self._headers)
                stats.billed(made.prompt_tokens, made.completion_tokens)
                self._answered()

    def _answer_in_pieces(self, made: Made) -> None:
        """Slowly or hugely, billed only when the client has stayed to the end."""
        exchange = self._exchange

        def end() -> None:
            exchange.on_room = None
            if isinstance(self._stream, Flood):
                exchange.write(made.body)
            exchange.end()
            self._stats.billed(made.prompt_tokens, made.completion_tokens)
            self._answered()

        exchange.on_gone = self._abandon
        if self._behaviour.outcome == "trickle":
            exchange.start_body(len(made.body), self._headers)
            pieces = [made.body[at : at + 1] for at in range(len(made.body))]
            self._stream = Stream(pieces, _TRICKLE_PER_S, exchange.write, end)
            self._stream.start()
        else:
            length = _HUGE_BLOCKS * len(_BLANK) + len(made.body)
            exchange.start_body(length if self._behaviour.number % 2 == 0 else None, self._headers)
            self._stream = Flood(_BLANK, _HUGE_BLOCKS, lambda: exchange.has_room, exchange.write, end)
            exchange.on_room = self._stream.go_on
            self._stream.go_on()

    def _make(self) -> Made:
        return self._kind.make(self._ask, self._behaviour, self._id, int(time.time()))

    def _answer_error(self) -> None:
        error = self._behaviour.error
        assert error is not None
        headers = self._headers
        if error.retry_after_s is not None:
            headers += retry_after(error.retry_after_s, error.retry_after_as, time.time())
        for name, value in error.headers.items():
            headers += f"{name}: {value}\r\n".encode()
        self._exchange.reply(error.status, error_body(error.status, error.message, error.code), headers)
        self._answered(error.status)

    def _answer_stream(self, events: Events) -> None:
        exchange = self._exchange
        exchange.start_stream(self._headers)
        exchange.write(events.opening)
        tokens, closing = events.tokens, events.closing
        outcome = self._behaviour.outcome
        if outcome in ("reset_mid_body", "malformed", "stall"):
            tokens = tokens[: len(tokens) // 2]
            closing = b'data: {"id":"chatcmpl-' + self._id + b'","object":"cha\n\n' if outcome == "malformed" else b""

        def end() -> None:
            if outcome == "stall":
                self._stats.hangs += 1
                exchange.on_gone = self._abandon
                return
            exchange.write(closing)
            if outcome == "reset_mid_body":
                self._broken()
                exchange.cut_stream()
                return
            if outcome == "no_done":
                self._stats.billed(events.prompt_tokens, events.completion_tokens)
                exchange.on_gone = self._abandon
                return
            exchange.end()
            if outcome != "malformed":
                self._stats.billed(events.prompt_tokens, events.completion_tokens)
            self._answered()

        def stamped(data: bytes) -> None:
            exchange.write(stamp(data, time.monotonic_ns() // 1000))

        write = stamped if self._behaviour.conduct.stamped else exchange.write
        pace = self._behaviour.conduct.tokens_per_s
        if pace is None:
            write(b"".join(tokens))
            end()
        else:
            exchange.on_gone = self._abandon
            self._stream = Stream(tokens, pace, write, end)
            self._stream.start()

    def _answered(self, status: int = 200) -> None:
        self._stats.answered(status)
        self._leave()

    def _broken(self) -> None:
        self._stats.resets += 1
        self._stats.lost()
        self._leave()

    def _abandon(self) -> None:
        """The client left: nothing is billed, and the slot is free for the next."""
        self._gone = True
        self._stats.abandoned += 1
        self._stats.lost()
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.stop()
        self._leave()

    def _leave(self) -> None:
        if self._slots is not None:
            self._slots.leave()
            self._slots = None
