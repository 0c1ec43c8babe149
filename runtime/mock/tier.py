"""One tier of the mock at work: asks the script what to do with a request and does it. Holds the tier's state.

The order for each request: key, body, request number, rate limit, context window, capacity, latency, outcome. A request
with no latency and no capacity limit is answered within the call; others wait on a timer, without a task.
"""

import time

from runtime.mock.ask import Ask, BadRequest, read_ask
from runtime.mock.behaviour import Script
from runtime.mock.call import Call, Kind
from runtime.mock.exchange import Exchange
from runtime.mock.gates import RateGate, Slots
from runtime.mock.scenario import TierScenario
from runtime.mock.shapes import error_body
from runtime.mock.stats import TierStats

__all__ = ["Tier"]


class Tier:
    def __init__(self, name: str, scenario: TierScenario, seed: int, require_key: bool) -> None:
        self.name = name
        self.stats = TierStats()
        self._script = Script(name, scenario, seed)
        self._require_key = require_key
        self._slots: Slots | None = None
        self.restart()

    def restart(self) -> None:
        """As freshly started: counters, request numbers, phases and rate limit. What is in flight goes on."""
        self.stats.reset()
        self._number = 0
        self._started: float | None = None
        self._gate: RateGate | None = None
        self._previous: tuple[Kind, Ask, bytes] | None = None

    def serve(self, kind: Kind, exchange: Exchange, body: bytes, authorized: bool) -> None:
        digest = self.stats.arrived(body, authorized)
        if self._require_key and not authorized:
            self._refuse(exchange, 401, "You didn't provide an API key (Authorization: Bearer ...).")
            return
        try:
            ask = read_ask(body, kind.read)
        except BadRequest as bad:
            self._refuse(exchange, 400, bad.message, bad.code, bad.param)
            return
        number = self._number
        self._number = number + 1
        now = time.monotonic()
        if self._started is None:
            self._started = now
        behaviour = self._script.at(number, now - self._started)
        conduct = behaviour.conduct
        id_ = b"%016x%x" % (digest, number)
        headers = b"x-request-id: req_%b\r\n" % id_
        if conduct.rate_limit is not None:
            if self._gate is None or self._gate.limit is not conduct.rate_limit:
                self._gate = RateGate(conduct.rate_limit)
            admitted, lines = self._gate.take(now)
            headers += lines
            if not admitted:
                self.stats.outcomes["rate_limited"] += 1
                self._refuse(exchange, 429, headers=headers)
                return
        if conduct.context_tokens is not None and ask.prompt_tokens > conduct.context_tokens:
            message = f"This model's maximum context length is {conduct.context_tokens} tokens."
            self._refuse(exchange, 400, message, "context_length_exceeded", "messages", headers)
            return
        self.stats.outcomes[behaviour.outcome] += 1
        if behaviour.outcome == "hang":
            self.stats.hangs += 1
            exchange.on_gone = self.stats.lost
            return
        before, self._previous = self._previous, (kind, ask, id_)
        if behaviour.outcome == "swapped" and before is not None and before[0] is kind:
            ask, id_ = before[1]._replace(stream=ask.stream, include_usage=ask.include_usage), before[2]
        if conduct.answers_as is not None:
            ask = ask._replace(model=conduct.answers_as)
        call = Call(self.stats, kind, exchange, ask, behaviour, id_, headers)
        if conduct.capacity is not None:
            if self._slots is None:
                self._slots = Slots(conduct.capacity)
            elif self._slots.size != conduct.capacity:
                self._slots.resize(conduct.capacity)
            call.queue(self._slots)
        elif behaviour.latency_s > 0:
            call.start()
        else:
            call.finish()

    def _refuse(
        self,
        exchange: Exchange,
        status: int,
        message: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: bytes = b"",
    ) -> None:
        exchange.reply(status, error_body(status, message, code, param), headers)
        self.stats.answered(status)
