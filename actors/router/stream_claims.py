"""The router's side of coalesced streams: equal streams share one call, cluster-wide.

The lead keeps what its call has said and passes it on through the coalescer, which says who follows. Whoever joins late
gets what was said so far at once and then the rest live. Every router has its own copy and each reader its own buffer, so
a slow one delays nobody.

When the lead's router dies, or its call fails in a way that is its own, the first follower leads: it goes on with what it
was told, as after any stream that broke. When the lead's caller goes, its call runs on while others follow, and ends with
the last of them. Without a coalescer a stream makes its own call.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from actors.coalescer.actor import Claim, Joined, Said, Say
from actors.coalescer.runaway import Runaway
from actors.coalescer.table import Lead, Shared
from actors.errors import ActorLost, LaneClosed, LaneTimeout
from actors.lane import LaneStream
from actors.messages import Amount, Chunk, Failure, Request, Result, pickled_flat
from actors.router.claims import LEAD_GRACE_S, Claims, refused
from actors.router.told import Listener, Told

__all__ = ["StreamClaims"]

Answer = Callable[[Request, Told], Coroutine[Any, Any, Result | Failure]]
Words = LaneStream[Any]
PIECE_CHUNKS = 256
"""What a late joiner gets is sent in pieces of so many."""


class Spoken(NamedTuple):
    """How a stream ended, with all that it said (None: too much to keep): what a lead publishes."""

    tier: str
    chunks: list[Chunk] | None
    done: Result | Failure


pickled_flat(Spoken)


class StreamClaims:
    """One a router, beside its Claims, whose lane it uses."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    async def share(self, request: Request, listener: Listener, answer: Answer) -> Result | Failure:
        """The stream of a request with a digest: another's, or what `answer` says, which others may then share."""
        told = Told(listener)
        claims = self._claims
        if not claims.lane.up:
            return await answer(request, told)
        lease_s = request.deadline_s + LEAD_GRACE_S
        claimant = claims.next_claimant()
        key = claims.key(request)
        try:
            words: Words = claims.lane.stream(Claim(key, lease_s, claimant, stream=True), lease_s)
        except LaneClosed:
            return await answer(request, told)
        lead: Lead | None = None
        joined: list[Joined] = []
        try:
            while lead is None:
                heard = await words.read()
                if not isinstance(heard, list):
                    return self._end(request, told, heard)
                for word in heard:
                    if isinstance(word, Lead):
                        lead = word
                    elif isinstance(word, Joined):
                        joined.append(word)
                    elif word.at < 0:
                        words.close()  # the lead cannot tell what it said before we came
                        return await answer(request, told)
                    else:
                        told.begin(word.tier)
                        told.catch_up(word.at, word.chunks)
        except (ActorLost, LaneClosed, LaneTimeout):
            return await answer(request, told)
        except BaseException:
            words.close()
            raise
        leading = _Leading(claims, key, lead.generation, claimant, words, told)
        return await leading.run(answer(request, told), joined, lease_s)

    def _end(self, request: Request, told: Told, heard: Any) -> Result | Failure:
        """The lead has ended, or nobody may ask this any more."""
        match heard:
            case Shared(Spoken() as spoken):
                if spoken.chunks and spoken.tier:
                    told.begin(spoken.tier)
                    told.catch_up(0, spoken.chunks)
                if isinstance(spoken.done, Result):
                    return spoken.done._replace(coalesced=True, cost=Amount(), attempts=())
                return spoken.done._replace(cost=Amount())
            case Runaway():
                return refused(request, heard)
            case _:
                return Failure("internal", f"the coalescer answered a stream with {type(heard).__name__}")


class _Leading:
    """A stream that this router makes the call for, for its own caller and for all who follow."""

    def __init__(self, claims: Claims, key: bytes, generation: int, claimant: int, words: Words, told: Told) -> None:
        self._claims, self._words, self._told = claims, words, told
        self._key, self._generation, self._claimant = key, generation, claimant
        self._followed = False

    async def run(
        self, answering: Coroutine[Any, Any, Result | Failure], joined: list[Joined], lease_s: float
    ) -> Result | Failure:
        loop = asyncio.get_running_loop()
        caller: asyncio.Future[Result | Failure] = loop.create_future()
        self._told.also = self._pass_on
        for each in joined:
            self._introduce(each)
        hearing = loop.create_task(self._listen())
        # A task of its own: it may outlive its caller.
        call = loop.create_task(answering)

        def ended(call: "asyncio.Task[Result | Failure]") -> None:
            hearing.cancel()
            self._told.also = None
            done = None
            if call.cancelled():
                caller.cancel()
            elif (error := call.exception()) is not None:
                if not caller.done():
                    caller.set_exception(error)
            else:
                done = call.result()
                if not caller.done():
                    caller.set_result(done)
            self._publish(done)

        call.add_done_callback(ended)
        try:
            return await caller
        except asyncio.CancelledError:
            self._told.listener = None
            self._claims.linger(self._claimant, call, lease_s)
            raise

    async def _listen(self) -> None:
        """Who joins. A coalescer that is lost brings nobody any more, and those who followed help themselves."""
        with contextlib.suppress(ActorLost, LaneClosed, LaneTimeout):
            while isinstance(heard := await self._words.read(), list):
                for word in heard:
                    if isinstance(word, Joined):
                        self._introduce(word)

    def _introduce(self, joined: Joined) -> None:
        """Tell one who joined late all that was said so far."""
        self._followed = True
        kept = self._told.kept
        if kept is None:
            self._say(Said(-1, "", []), joined.follower)
            return
        for at in range(0, len(kept), PIECE_CHUNKS):
            self._say(Said(at, self._told.tier, kept[at : at + PIECE_CHUNKS]), joined.follower)

    def _pass_on(self, before: int, chunks: list[Chunk]) -> None:
        if self._followed:
            self._say(Said(before, self._told.tier, chunks), None)

    def _say(self, said: Said, to: tuple[str, int] | None) -> None:
        self._claims.tell(Say(self._key, self._generation, said, _size(said.chunks), to))

    def _publish(self, done: Result | Failure | None) -> None:
        told = self._told
        spoken = None if done is None else Spoken(told.tier, told.kept, done)
        keep = told.kept is not None  # an answer without its words is none to keep
        self._claims.end_lead(
            self._key, self._generation, self._claimant, done, spoken, told.size if keep else 0, keep, self._words.close
        )


def _size(chunks: list[Chunk]) -> int:
    return sum(len(chunk.data) + len(chunk.text) + 60 for chunk in chunks)
