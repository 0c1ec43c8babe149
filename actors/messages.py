"""The frozen values that cross actors.

NamedTuples: frozen, cheap to make and to pickle (a row makes about six of them). No value carries a
wall-clock or monotonic time, since clocks differ between machines: times are always "seconds from now".
Request bodies travel as bytes that were encoded once; nobody re-parses what it only carries.
"""

import copyreg
from typing import Any, Literal, NamedTuple

__all__ = [
    "Account",
    "Amount",
    "Answer",
    "Attempt",
    "Billed",
    "Chunk",
    "Failure",
    "FailureKind",
    "GiveBack",
    "Health",
    "Heed",
    "Refusal",
    "Request",
    "Result",
    "StreamTerms",
    "Streaming",
    "TierCall",
    "ToTier",
    "Usage",
    "pickled_flat",
]

FailureKind = Literal[
    # of one attempt, classified once, at the wire (actors/tier/classify.py)
    "rate_limited",
    "overloaded",
    "timeout",
    "connection",
    "server",
    "context_length",
    "content_filter",
    "auth",
    "not_found",
    "bad_request",
    "malformed",
    "cancelled",
    "lost",  # the actor that made the call died: nobody saw the outcome
    # of a whole request, decided by the router
    "all_tiers_exhausted",
    "no_tier",
    "deadline",
    "budget_exceeded",
    "runaway_loop",
    "invalid_output",
    "broken_stream",
    "internal",
]

Billed = Literal["no", "yes", "unknown"]
"""Whether the provider charges for an attempt: surely not, as its usage says, or nobody can tell."""


class Usage(NamedTuple):
    """Tokens as the provider reports them. `cached_tokens` is part of prompt_tokens, `reasoning_tokens` of completion_tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Amount(NamedTuple):
    """What budgets count, both at once, in whole units: tokens and micro-dollars (1 USD = 1,000,000)."""

    tokens: int = 0
    usd_micros: int = 0

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.usd_micros + other.usd_micros)

    def minus(self, other: "Amount") -> "Amount":
        return Amount(self.tokens - other.tokens, self.usd_micros - other.usd_micros)


class Account(NamedTuple):
    """Who spends: the combination of scopes that one attempt is charged to (besides the scope `all`)."""

    tier: str
    job: str
    key: str = ""


class Request(NamedTuple):
    """One request as the door hands it to the router."""

    id: str
    path: str
    """Path below the tier's base_url, such as `/chat/completions`."""
    body: bytes
    """The JSON object of the request WITHOUT `model`; a tier's own fields are spliced in front of it."""
    digest: bytes
    """Coalescing key (actors/coalescer/key.py); b"" means: never share this call."""
    prompt_bound_tokens: int
    """Upper bound of the prompt's tokens."""
    max_tokens: int | None
    """What the request itself allows the completion; None: the tier's `max_output_tokens` is set."""
    choices: int = 1
    """The request's `n`: so many completions are paid for."""
    start_tier: int = 0
    """Index of the tier where the cascade starts (from `body.model`)."""
    min_quality: int = 0
    """Tiers below this rank are never tried: 0 basic, 1 medium, 2 high."""
    barred: int = 0
    """Tiers (bit by index) that its caller may not use."""
    deadline_s: float = 600.0
    interactive: bool = False
    job: str = ""
    key: str = ""
    """Name of the caller's gateway key; empty for a batch."""
    prompt: str = ""
    """`name@version` of the registered prompt that made this body, for the output line and the coalescing key."""
    schema: bytes = b""
    """JSON Schema that the answer must satisfy; b"" means none. Each tier demands it in its own way, not the body."""
    response_format: bytes = b""
    """The request's own `response_format`, when the schema is from there: for tiers that take it natively."""
    reply_retries: int = 2
    """How often an answer that does not satisfy the schema is asked for again."""
    escalate: bool = False
    """Whether better tiers are asked when the same tier has failed the schema twice."""
    images: int = 0
    """Images in the prompt, which each tier bounds in its own way (actors/router/cost.py)."""
    small_images: int = 0
    """Those with `detail: low`, on top."""
    opaque: bool = False
    """The prompt has content whose size nobody here can see: the tier's context window bounds it."""
    stream: bool = False
    """The answer is wanted as it comes."""
    predicted_tokens: int = 0
    """What a `prediction` may add to each completion: the tokens of it that turn out wrong are charged as output."""
    trace: str = ""
    """The caller's `traceparent` (W3C), for spans."""


class Attempt(NamedTuple):
    """One call that was made, or tried, for a request."""

    tier: str
    actor: int
    kind: str
    """`ok` or a FailureKind."""
    status: int
    duration_s: float
    message: str = ""
    unmetered_tokens: int = 0
    """Of an answer that did not tell its usage: what was booked for it, its whole reservation."""
    overrun_tokens: int = 0
    """What it used above its reservation."""
    margin_milli: int = 0
    """The tier's margin after it, in thousandths, when it was this attempt that widened it."""
    hedged: bool = False
    """It was a second copy, sent while the first was late. The last attempt of a Result is the one that answered."""
    prompt_tokens: int = 0
    """As the provider counted; zero where no answer told."""
    completion_tokens: int = 0
    booked: Amount = Amount()
    """What was charged for it: its usage, or its whole reservation where nobody saw the usage."""
    overrun_usd_micros: int = 0
    misfit: bool = False
    """It answered, and the answer does not satisfy the request's schema."""
    first_token_s: float = 0.0
    """Of an answer that was streamed: from sending to the first part of it."""
    per_token_s: float = 0.0
    """And each token after that, on average."""
    malformed_events: int = 0
    """Of its stream: they could not be read, and were passed over."""


class Result(NamedTuple):
    """A request that succeeded."""

    body: bytes
    """The upstream body as it came."""
    status: int
    tier: str
    attempts: tuple[Attempt, ...]
    usage: Usage
    cost: Amount
    """All this request spent, failed attempts included; zero for a follower."""
    coalesced: bool = False
    parsed: bytes = b""
    """The validated JSON value when the request had a schema."""
    refused_replies: int = 0
    """Replies before it that did not satisfy the schema."""
    trace: str = ""
    """Where requests are traced: the span of the one that made the call, as a `traceparent`, for those that share it."""

    @property
    def metered(self) -> bool:
        """False when an answer came without usage, so that `cost` has its reservation in it."""
        return not any(attempt.unmetered_tokens for attempt in self.attempts)


class Failure(NamedTuple):
    """An attempt or a request that failed: plain data, so that nothing of the transport (headers, keys) travels with it."""

    kind: FailureKind
    message: str
    status: int = 0
    retry_after_s: float | None = None
    billed: Billed = "no"
    usage: Usage | None = None
    """What the provider says it counted, where a failed answer (a cut one, say) still told."""
    body: bytes = b""
    """The last upstream error body, bounded, for the row's error line."""
    attempts: tuple[Attempt, ...] = ()
    cost: Amount = Amount()
    own_fault: bool = False
    """True when the request itself is to blame, so that anyone who sends the same gets the same."""
    resumable: bool = False
    """True when the row is not done but only put off (a budget that ended): no error line is due."""
    endpoint: int = -1
    """Of an attempt, the number of the endpoint that failed it; -1: none was asked."""
    refused_replies: int = 0
    """Replies that did not satisfy the schema."""
    duration_s: float = 0.0
    """Of an attempt: from the moment it was sent. What it waited for before is nobody's slowness."""
    not_again: bool = False
    """The endpoint has asked not to be sent this request again (`x-should-retry: false`)."""


class StreamTerms(NamedTuple):
    """How a streamed attempt is read."""

    first_token_timeout_s: float
    """From sending to the first part of the answer."""
    stall_timeout_s: float
    """Each wait for more, from then on."""
    choices: int = 1


class Chunk(NamedTuple):
    """One event of a stream, as it came."""

    data: bytes
    text: str
    """What its only choice says in it; empty where there are several choices, and where it says nothing."""


class TierCall(NamedTuple):
    """Router -> tier: one attempt."""

    id: str
    path: str
    body: bytes
    """The complete request body."""
    timeout_s: float
    """One attempt, from the moment it is sent."""
    queue_s: float
    """How long the call may wait in the tier for a free slot before it is given back as a Refusal."""
    rate_s: float
    """How long it may wait for the tier's own requests or tokens per minute before it is given back as a Refusal."""
    tokens: int
    """What the call is expected to take from the tier's tokens-per-minute limit."""
    avoid: int = -1
    """The number of an endpoint that is used only when no other is ready: it has, or has failed, this request before."""
    held: int = 0
    """Endpoints (bit by number) that are out at the actor which probes them for the whole tier: avoided, never probed."""
    stream: StreamTerms | None = None
    """The answer is streamed: Chunks come first, and the Answer at the end has no body."""
    whose: str = ""
    """Of the job or key: those that wait take turns."""


class GiveBack(NamedTuple):
    """Router -> tier: refuse so many calls that have not been sent, since another actor of the tier has nothing to send."""

    calls: int


class Heed(NamedTuple):
    """Router -> tier: a refusal has slowed another actor of the tier down. They share what the endpoint allows."""

    endpoint: int
    ago_s: float


ToTier = TierCall | GiveBack | Heed


class Streaming(NamedTuple):
    """What an answer that was streamed tells beside its usage."""

    first_token_s: float
    most_tokens: int
    """An upper bound of the completion's tokens, from what was sent: for an answer that does not tell its usage."""
    events: int
    """With a part of the answer in them."""
    malformed: int
    """That could not be read, and were passed over."""


class Answer(NamedTuple):
    """Tier -> router: the endpoint answered, and the answer is whole."""

    body: bytes
    status: int
    usage: Usage | None
    model: str
    duration_s: float
    endpoint: int = 0
    """The number of the endpoint that answered, among the tier's `base_url`s."""
    streaming: Streaming | None = None


class Refusal(NamedTuple):
    """Tier -> router: nothing was sent. Not an attempt."""

    reason: Literal["open", "cooling", "queue", "rate", "absent"]
    """`absent`: the endpoint has said that it does not have this path or model; this tier is no use to the request."""
    retry_in_s: float
    message: str = ""


class Health(NamedTuple):
    """The condition of a tier actor, or of one of its endpoints; rides back on every completion batch.

    With several endpoints an actor's is that of the endpoint that can take a call first, with the sums over all.
    """

    state: Literal["closed", "open", "half_open"] = "closed"
    open_for_s: float = 0.0
    """Until the breaker lets a probe through; 0: now, or it is closed."""
    cooling_for_s: float = 0.0
    """Until a pause is over that the endpoint has asked for, or that it was given because it is dead."""
    in_flight: int = 0
    queued: int = 0
    """Calls that the actor holds back: they have not been sent."""
    limit: int = 1
    opened: int = 0
    """How often a breaker has opened in this actor's life."""
    dead_reason: str = ""
    """Set when it is out (a wrong key, a model that vanished), until it answers again. It is asked again after
    `cooling_for_s`."""
    why: str = ""
    """Why it takes no calls, redacted; empty when all is well."""
    since_s: float = 0.0
    """For how long the state has lasted, or the pause that `why` tells of; 0: always, or not known."""
    address: str = ""
    """Of an endpoint: host, port and path."""
    endpoints: "tuple[Health, ...]" = ()
    """Each endpoint's, when the tier has several, in the order of `base_url`."""
    dead_kind: FailureKind = "auth"
    absent: str = ""
    """Why the endpoint cannot take calls to some path, though it may take others."""
    cut_s: float | None = None
    """How long ago a refusal last slowed the calls down; None: never."""


# ---- how they cross


def pickled_flat(*types: type[tuple[Any, ...]]) -> None:
    """Have NamedTuples pickled as type and fields: a third of what pickle's own way costs, and every hop of a row pays it."""
    for kind in types:
        copyreg.pickle(kind, _type_and_fields)


def _type_and_fields(value: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    return type(value), tuple(value)


pickled_flat(
    Usage, Amount, Account, Request, Attempt, Result, Failure, TierCall, GiveBack, Heed, Answer, Refusal, Health
)
pickled_flat(StreamTerms, Streaming, Chunk)
