"""The network of a history: everything that crosses between two processes, with its delays, losses and partitions.

A call can arrive late, not at all, or be executed while its answer is lost; whoever asked learns of it as an error, late
or never. A stream keeps its order, but stalls and breaks, and its serving half may never hear that it broke.
When a process is killed, calls to it fail and streams from it break after a while, as Ray reports it.
"""

import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

from actors.lane import FAR, Batch, Gap
from tests.simulation.loop import Loop, Process

__all__ = ["Faults", "Network", "Node", "SimulatedPeer"]

NOBODY_S = 0.05
"""How long it takes to learn that nobody is there."""


class Faults(NamedTuple):
    """Probabilities per message, and how long things take in seconds."""

    delay_s: float = 0.002
    """Mean of one way."""
    spikes: float = 0.0
    """How often a message takes up to `spike_s`."""
    spike_s: float = 1.0
    lost: float = 0.0
    """A call that never arrives."""
    unanswered: float = 0.0
    """A call that is executed while its answer is lost."""
    silent: float = 0.0
    """How many of those are never told to whoever asked."""
    breaks: float = 0.0
    """Per batch of a stream."""
    deaf: float = 0.5
    """How many broken streams their serving half never hears of."""


class Node:
    """An address: a process behind it, or none, that may be another one after a restart."""

    __slots__ = ("actor", "name", "process")

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: Process | None = None
        self.actor: Any = None

    @property
    def up(self) -> bool:
        return self.process is not None


class _Stream:
    """A stream's end at whoever reads it."""

    __slots__ = ("arrives_at", "broken", "node", "process", "pump", "reader", "waiter", "words")

    def __init__(self, node: Node, reader: Process) -> None:
        self.node = node
        self.process: Process | None = None
        """The serving process, once it has been reached."""
        self.reader = reader
        self.pump: Any = None
        self.words: deque[Batch | Exception | None] = deque()
        self.waiter: Any = None
        self.arrives_at = 0.0
        self.broken = False

    def put(self, word: Batch | Exception | None) -> None:
        self.words.append(word)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Network:
    """Carries calls and streams between processes. `faults` may be changed in mid-history."""

    def __init__(self, loop: Loop, rng: random.Random, faults: Faults, tell: Callable[..., None]) -> None:
        self.faults = faults
        self.dropped = 0
        self.broken = 0
        self.after_call: Callable[[Node, Any, str], None] = lambda node, actor, method: None
        """Called in the serving process after each step of a plain call."""
        self._loop = loop
        self._rng = rng
        self._tell = tell
        self._cut: dict[tuple[str, str], float] = {}
        self._calls: dict[Any, tuple[Process, Process]] = {}
        """Future of who asked -> (asking, serving) process, while the call is served."""
        self._streams: dict[_Stream, None] = {}

    # ------------------------------------------------------------------ what happens to it

    def partition(self, one: str, other: str, seconds: float) -> None:
        self._tell("partition", one, other, f"{seconds:.2f} s")
        self._cut[one, other] = self._cut[other, one] = self._loop.now + seconds

    def heal(self) -> None:
        self._cut.clear()
        self.faults = Faults(delay_s=self.faults.delay_s)

    def gone(self, process: Process) -> None:
        """A process was killed: those who wait for it are told, sooner or later."""
        for future, (asking, serving) in list(self._calls.items()):
            if serving is process:
                del self._calls[future]
                self._loop.run_in(asking, self._learns_s(), _fail, future, "the actor died")
        for stream in self._streams:
            if stream.process is process:
                self._break(stream, self._learns_s())

    # ------------------------------------------------------------------ calls

    async def call(self, asking: Process, node: Node, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the actor behind `node`. Raises ConnectionError, or what the method raised."""
        rng, faults, loop = self._rng, self.faults, self._loop
        future = loop.create_future()
        chance = rng.random()
        delay_s = self._delay_s()
        cut_until = self._cut.get((asking.name, node.name), 0.0) if self._cut else 0.0
        if cut_until > loop.now:
            if rng.random() < 0.5:
                delay_s += cut_until - loop.now  # it arrives all the same, when nobody expects it any more
            else:
                chance = 0.0
        if chance < faults.lost or (chance == 0.0 and cut_until):
            self.dropped += 1
            self._tell("lost", asking.name, "->", node.name, method)
            if rng.random() >= faults.silent:
                loop.run_in(asking, delay_s, _fail, future, "the connection broke")
        else:
            answers = chance >= faults.lost + faults.unanswered
            loop.run_in(loop.world, delay_s, self._arrive, asking, node, (method, args, options), future, answers)
        return await future

    def _arrive(self, asking: Process, node: Node, what: Any, future: Any, answers: bool) -> None:
        if node.process is None:
            self._loop.run_in(asking, NOBODY_S, _fail, future, "nobody is there")
            return
        self._calls[future] = (asking, node.process)
        if what[0] == "submit":
            # nearly all calls are submits, which never wait; a task for each would cost more than what it does
            self._loop.soon_in(node.process, self._take, asking, node, what, future, answers)
        else:
            self._loop.task_in(node.process, self._serve(asking, node, node.actor, what, future, answers))

    def _take(self, asking: Process, node: Node, what: Any, future: Any, answers: bool) -> None:
        taking = node.actor.submit(*what[1])
        try:
            taking.send(None)
        except StopIteration as stop:
            self._answer(asking, node, "submit", future, answers, stop.value, None)
        except Exception as raised:  # it crosses to whoever asked
            self._answer(asking, node, "submit", future, answers, None, raised)
        else:
            raise AssertionError("submit waits for something: serve it in a task")

    async def _serve(self, asking: Process, node: Node, actor: Any, what: Any, future: Any, answers: bool) -> None:
        method, args, options = what
        error: Exception | None = None
        result = None
        try:
            result = await getattr(actor, method)(*args, **options)
        except Exception as raised:  # it crosses to whoever asked
            error = raised
        self.after_call(node, actor, method)
        self._answer(asking, node, method, future, answers, result, error)

    def _answer(
        self, asking: Process, node: Node, method: str, future: Any, answers: bool, result: Any, error: Exception | None
    ) -> None:
        if self._calls.pop(future, None) is None:
            return  # this process was killed by what it did
        if not answers:
            self.dropped += 1
            self._tell("unanswered", asking.name, "->", node.name, method)
            if self._rng.random() < self.faults.silent:
                return
            error = ConnectionError("the connection broke")
        loop = self._loop
        delay_s = self._delay_s()
        if self._cut:
            delay_s += max(0.0, self._cut.get((asking.name, node.name), 0.0) - loop.now)
        if error is not None:
            loop.run_in(asking, delay_s, _raise, future, error)
        else:
            loop.run_in(asking, delay_s, _resolve, future, result)

    # ------------------------------------------------------------------ streams

    async def stream(self, asking: Process, node: Node, lane: str, generation: int) -> AsyncGenerator[Batch, None]:
        """Read `completions` of the actor behind `node`."""
        loop = self._loop
        stream = _Stream(node, asking)
        self._streams[stream] = None
        delay_s = self._delay_s()
        if self._cut:
            delay_s += max(0.0, self._cut.get((asking.name, node.name), 0.0) - loop.now)
        loop.run_in(loop.world, delay_s, self._begin, stream, lane, generation)
        words = stream.words
        try:
            while True:
                while not words:
                    stream.waiter = loop.create_future()
                    await stream.waiter
                word = words.popleft()
                if word is None:
                    return
                if isinstance(word, Exception):
                    raise word
                yield word
        finally:
            self._streams.pop(stream, None)
            stream.broken = True
            # when the history is over, Python only tidies up: no chance may be drawn any more
            if stream.pump is not None and stream.process is not None and not loop.is_closed():
                self._end_pump(stream.process, stream.pump)

    def _end_pump(self, process: Process, pump: Any) -> None:
        if self._rng.random() >= self.faults.deaf:
            self._loop.run_in(process, self._delay_s(), pump.cancel)

    def _begin(self, stream: _Stream, lane: str, generation: int) -> None:
        if stream.broken:
            return
        process = stream.process = stream.node.process
        if process is None:
            self._break(stream, NOBODY_S)
            return
        stream.pump = self._loop.task_in(process, self._pump(stream, stream.node.actor.completions(lane, generation)))

    async def _pump(self, stream: _Stream, source: AsyncGenerator[Batch, None]) -> None:
        loop = self._loop
        try:
            async for batch in source:
                if stream.broken:
                    continue  # it has not heard: what it yields goes nowhere
                if self.faults.breaks and self._rng.random() < self.faults.breaks:
                    self._break(stream, self._delay_s())
                    continue
                stream.arrives_at = max(stream.arrives_at, loop.now + self._delay_s(), self._until(stream))
                loop.run_in(stream.reader, stream.arrives_at - loop.now, stream.put, batch)
        finally:
            await source.aclose()
            loop.run_in(stream.reader, max(0.0, stream.arrives_at - loop.now), stream.put, None)

    def _until(self, stream: _Stream) -> float:
        return self._cut.get((stream.reader.name, stream.node.name), 0.0) if self._cut else 0.0

    def _break(self, stream: _Stream, delay_s: float) -> None:
        if not stream.broken:
            stream.broken = True
            self.broken += 1
            self._tell("stream breaks", stream.node.name, "->", stream.reader.name)
            self._loop.run_in(stream.reader, delay_s, stream.put, ConnectionError("the stream broke"))

    # ------------------------------------------------------------------ inside

    def _delay_s(self) -> float:
        rng, faults = self._rng, self.faults
        delay_s = faults.delay_s * 2.0 * rng.random()
        if faults.spikes and rng.random() < faults.spikes:
            delay_s += faults.spike_s * rng.random()
        return delay_s

    def _learns_s(self) -> float:
        return self._rng.choice((0.0, 0.02, 0.3, 2.0))


class SimulatedPeer:
    """A serving half behind the network. A Peer of the lane."""

    is_near = False

    def __init__(self, network: Network, asking: Process, node: Node) -> None:
        self._network = network
        self._asking = asking
        self._node = node

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        return bool(await self._network.call(self._asking, self._node, "submit", lane, generation, items, cancel))

    def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        return self._network.stream(self._asking, self._node, lane, generation)


def _resolve(future: Any, result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _raise(future: Any, error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _fail(future: Any, why: str) -> None:
    _raise(future, ConnectionError(why))
