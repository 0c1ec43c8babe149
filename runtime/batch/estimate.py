"""`--dry-run`: what a job would do and what it might cost, found without calling anything.

Every row goes the way it would go in a run (parse, custom_id, encode, share), so the errors are those a run would
write. What a run would spend can only be bounded: nobody knows how a tokenizer cuts a text or how long an answer gets.
So there are two figures, and the second is the one that budgets go by: `Tariff.bound`, which is what a run reserves.

Memory: two digest tables, at most 100 bytes a row together.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.budget.limits import request_limits, window_limits
from actors.errors import InputError
from actors.messages import Account, Amount, Request, Usage
from actors.router.cost import Tariff
from actors.router.measure import TEMPLATE_TOKENS
from actors.settings import Price, TierSettings
from runtime.batch.digests import DigestTable, digest_of
from runtime.batch.reader import InputSet, RawRow, Row, RowError, parse_row
from runtime.batch.rows import Encoder
from runtime.batch.summary import CODES, counted, dollars, rows, short
from runtime.config import Config

__all__ = ["BudgetCheck", "Estimate", "TierEstimate", "estimate", "print_estimate"]

SHOWN_ERRORS = 10
BYTES_PER_TOKEN = 4
ANSWER_SHARE = 0.5
"""How much of what an answer may have is taken as likely."""
IMAGE_SHARE = 0.5
"""And of what an image may have: a square one of 1,024 pixels has about half of that at OpenAI's models."""
NOTHING = Amount()


class TierEstimate(NamedTuple):
    """The rows that start at one tier, each called once. `most` is what a run would reserve for them."""

    name: str
    model: str
    calls: int = 0
    likely_prompt_tokens: int = 0
    most_prompt_tokens: int = 0
    most_completion_tokens: int = 0
    likely: Amount = NOTHING
    most: Amount = NOTHING
    images: int = 0
    image_tokens: int = 0
    """The most that one of them is taken to have."""
    opaque: int = 0
    """Calls with content whose size is not known here."""
    context_tokens: int = 0
    """What each of those is taken to read at most."""


class BudgetCheck(NamedTuple):
    """One budget beside what the job needs of it, in tokens or micro-dollars."""

    scope: str
    window: str
    unit: str
    limit: int
    likely: int
    most: int


class Estimate(NamedTuple):
    """What `estimate` found."""

    files: tuple[str, ...]
    rows: int
    codes: dict[str, int]
    """Rows that cannot be used, by error code."""
    errors: tuple[str, ...]
    """The first of them: file, line and what is wrong."""
    shared: int
    """Rows that have another row's answer."""
    too_dear: int
    """Rows that ask for more than one request may use; they would fail."""
    tiers: tuple[TierEstimate, ...]
    budgets: tuple[BudgetCheck, ...]
    on_exhausted: str
    limit: int | None
    unreadable: str
    """Why the input could not be read to its end; empty when it could."""

    @property
    def calls(self) -> int:
        return sum(tier.calls for tier in self.tiers)

    @property
    def likely(self) -> Amount:
        return _total(tier.likely for tier in self.tiers)

    @property
    def most(self) -> Amount:
        return _total(tier.most for tier in self.tiers)


class _Sums:
    """A TierEstimate while it grows."""

    def __init__(self, tier: TierSettings, price: Price, too_dear: Callable[[Amount], bool]) -> None:
        self.tier = tier
        self.tariff = Tariff(price, tier)
        self.too_dear = too_dear
        self.calls = self.likely_prompt = self.most_prompt = self.most_completion = self.images = self.opaque = 0
        self.likely = self.most = NOTHING

    def add(self, request: Request, bound: Amount) -> None:
        self.calls += 1
        most_prompt, completion = self.tariff.tokens(request)
        text_bytes = request.prompt_bound_tokens - TEMPLATE_TOKENS  # an image that stands in the body is no text
        prompt = -(-text_bytes // BYTES_PER_TOKEN) + round(self.tariff.of_images(request) * IMAGE_SHARE)
        self.images += request.images + request.small_images
        self.opaque += request.opaque
        self.likely_prompt += prompt
        self.most_prompt += most_prompt
        self.most_completion += completion
        self.likely = self.likely.plus(self.tariff.cost(Usage(prompt, round(completion * ANSWER_SHARE))))
        self.most = self.most.plus(bound)

    def estimate(self) -> TierEstimate:
        return TierEstimate(
            self.tier.name,
            self.tier.model,
            self.calls,
            self.likely_prompt,
            self.most_prompt,
            self.most_completion,
            self.likely,
            self.most,
            self.images,
            self.tariff.image_tokens,
            self.opaque,
            self.tariff.context_tokens,
        )


def estimate(
    inputs: InputSet,
    encoder: Encoder,
    config: Config,
    prices: Mapping[str, Price],
    share: bool,
    limit: int | None,
    *,
    max_tokens: int | None = None,
    max_usd: float | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Estimate:
    """Read `inputs` and tell what a run would make of them.

    `share`: equal rows have one call. `max_tokens` and `max_usd` are the job's own budget. `on_rows` is told now and
    then how many rows have been read.
    """
    sums = [_Sums(tier, prices[tier.name], _over_limit(config, tier.name)) for tier in config.tiers]
    ids, keys = DigestTable(), DigestTable()
    codes: Counter[str] = Counter()
    errors: list[str] = []
    count = shared = too_dear = 0
    unreadable = ""
    try:
        for raw in _raw_rows(inputs, limit, on_rows):
            count += 1
            try:
                request, start = _checked(raw, ids, encoder, config.tiers, inputs)
            except RowError as error:
                codes[error.code] += 1
                if len(errors) < SHOWN_ERRORS:
                    errors.append(str(error))
                continue
            bound = sums[start].tariff.bound(request)
            if sums[start].too_dear(bound):
                too_dear += 1
            elif share and request.digest and keys.setdefault(request.digest, raw.number) != raw.number:
                shared += 1
            else:
                sums[start].add(request, bound)
    except InputError as error:
        unreadable = str(error)
    tiers = tuple(each.estimate() for each in sums)
    budgets = tuple(_budgets(config, tiers, max_tokens, max_usd))
    return Estimate(
        files=inputs.files,
        rows=count,
        codes=dict(codes),
        errors=tuple(errors),
        shared=shared,
        too_dear=too_dear,
        tiers=tiers,
        budgets=budgets,
        on_exhausted=config.budget.on_exhausted,
        limit=limit,
        unreadable=unreadable,
    )


def _raw_rows(inputs: InputSet, limit: int | None, on_rows: Callable[[int], None]) -> Iterator[RawRow]:
    for chunk in inputs.chunks():
        for raw in chunk:
            if limit is not None and raw.number >= limit:
                return
            yield raw
        on_rows(chunk[-1].number + 1)


def _checked(
    raw: RawRow, ids: DigestTable, encoder: Encoder, tiers: list[TierSettings], inputs: InputSet
) -> tuple[Request, int]:
    """The row's request and the tier that is asked first. Raises RowError."""
    row = parse_row(raw)
    if isinstance(row, RowError):
        raise row
    first = ids.setdefault(digest_of(row.custom_id), row.number)
    if first != row.number:
        message = f"expected a custom_id of its own; {row.custom_id[:80]!r} is that of {inputs.place(first)}"
        raise _refused(row, "duplicate_custom_id", message, "custom_id")
    request = encoder.encode(row)
    for index in range(request.start_tier, len(tiers)):
        if tiers[index].rank >= request.min_quality:
            return request, index
    raise _refused(row, "no_tier", "no tier from where this row starts has the quality that is asked for", "body.model")


def _refused(row: Row, code: str, message: str, field: str) -> RowError:
    return RowError(row.number, code, message, row.file, row.line, field, row.custom_id)


def _over_limit(config: Config, tier: str) -> Callable[[Amount], bool]:
    limits = request_limits(config.budget, Account(tier, ""))
    return lambda bound: limits.refuse(NOTHING, bound) is not None


def _budgets(
    config: Config, tiers: tuple[TierEstimate, ...], max_tokens: int | None, max_usd: float | None
) -> Iterator[BudgetCheck]:
    """Every budget that this job is charged to."""
    likely, most = _total(tier.likely for tier in tiers), _total(tier.most for tier in tiers)
    needs = {"all": (likely, most)} | {f"tier:{tier.name}": (tier.likely, tier.most) for tier in tiers}
    for key, limit in window_limits(config.budget).items():
        if key.scope in needs:
            field = 0 if key.unit == "tokens" else 1
            of_scope = needs[key.scope]
            yield BudgetCheck(key.scope, key.window, key.unit, limit, of_scope[0][field], of_scope[1][field])
    if max_tokens is not None:
        yield BudgetCheck("job", "total", "tokens", max_tokens, likely.tokens, most.tokens)
    if max_usd is not None:
        yield BudgetCheck("job", "total", "usd", int(max_usd * 1e6), likely.usd_micros, most.usd_micros)


def _total(amounts: Iterator[Amount]) -> Amount:
    total = NOTHING
    for amount in amounts:
        total = total.plus(amount)
    return total


# -- in words ------------------------------------------------------------------------------------------------------


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Tell it: rows, errors, what each tier would get, what that costs, whether the budgets last, how sure it is."""
    names, first = len(estimate.files), estimate.files[0]
    console.print(
        Text(f"Dry run of {first}{f' and {names - 1:,} more files' if names > 1 else ''}: nothing was called.")
    )
    if estimate.limit is not None:
        console.print(f"Only the first {rows(estimate.limit)} were looked at (--limit).")
    if estimate.unreadable:
        console.print(Text(f"The input is damaged, a run would stop there: {estimate.unreadable}", style="bold red"))
    console.print()
    console.print(_rows_table(estimate))
    if estimate.errors:
        console.print()
        more = sum(estimate.codes.values()) - len(estimate.errors)
        for line in estimate.errors:
            console.print(Text(line), style="red", soft_wrap=True)
        if more:
            console.print(f"and {more:,} more", style="red")
    if not estimate.calls:
        return
    console.print()
    console.print(_tiers_table(estimate))
    console.print()
    likely, most = estimate.likely, estimate.most
    console.print(
        Text(
            f"The job would likely cost {dollars(likely.usd_micros)} ({short(likely.tokens)} tokens), "
            f"and at most {dollars(most.usd_micros)} ({short(most.tokens)} tokens).",
            style="bold",
        )
    )
    for check in estimate.budgets:
        console.print(Text(_verdict(check, estimate.on_exhausted)))
    console.print()
    for sentence in _how_sure(estimate):
        console.print(Text(sentence, style="dim"))


def _rows_table(estimate: Estimate) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("rows", f"{estimate.rows:,}", "")
    table.add_row("would be sent", f"{estimate.calls:,}", "")
    if estimate.shared:
        table.add_row("would share an answer", f"{estimate.shared:,}", "they equal a row before them")
    if estimate.too_dear:
        table.add_row(
            "would fail", f"{estimate.too_dear:,}", "they ask for more than one request may use (per_request)"
        )
    refused = sum(estimate.codes.values())
    table.add_row("cannot be used", f"{refused:,}", counted(estimate.codes, CODES))
    return table


def _tiers_table(estimate: Estimate) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("starts at", overflow="fold")
    for name in ("calls", "prompt tokens", "answer tokens", "likely", "at most"):
        table.add_column(name, justify="right")
    for tier in estimate.tiers:
        if tier.calls:
            table.add_row(
                tier.name,
                f"{tier.calls:,}",
                f"{short(tier.likely_prompt_tokens)} to {short(tier.most_prompt_tokens)}",
                f"up to {short(tier.most_completion_tokens)}",
                dollars(tier.likely.usd_micros),
                dollars(tier.most.usd_micros),
            )
    return table


def _verdict(check: BudgetCheck, on_exhausted: str) -> str:
    """One budget in one sentence."""
    amount = dollars if check.unit == "usd" else lambda tokens: f"{tokens:,} tokens"
    whose = f" for {check.scope.removeprefix('tier:')}" if check.scope.startswith("tier:") else ""
    which = "its own budget" if check.scope == "job" else f"the {check.window}'s budget{whose}"
    if check.most <= check.limit:
        verdict = "enough."
    elif check.likely <= check.limit:
        verdict = "probably enough, not surely."
    elif whose:
        verdict = "not enough, other tiers would take the rest."
    else:
        then = "wait for the next window" if on_exhausted == "wait" and check.scope != "job" else "stop"
        verdict = f"not enough, the job would {then} after about {check.limit / check.likely:.0%} of it."
        if check.window == "hour":
            verdict = f"not enough within one hour; a job that is that fast would {then}."
    return (
        f"It needs at most {amount(check.most)} (likely {amount(check.likely)}), "
        f"{which} is {amount(check.limit)}: {verdict}"
    )


def _how_sure(estimate: Estimate) -> Iterator[str]:
    yield "Exact: the rows, those that cannot be used, and those that are equal."
    yield (
        f"Likely: a token every {BYTES_PER_TOKEN} bytes of a row's body, and answers half as long as they may get. "
        "English text is near that; other scripts, code and images can be far from it."
    )
    yield (
        "At most: a token every byte, and answers of full length. One call for each row uses no more, as long as the "
        "provider honours the limit on an answer's length and its price list."
    )
    for tier in estimate.tiers:
        if tier.images:
            images = "1 image" if tier.images == 1 else f"{tier.images:,} images"
            yield f"{images} at {tier.name}: at most {tier.image_tokens:,} tokens each, likely half of it."
        if tier.opaque:
            yield (
                f"{rows(tier.opaque)} at {tier.name} with files, audio, stored content or tools of the provider's: "
                f"at most a whole window of {tier.context_tokens:,} tokens each; in what is likely they are not counted."
            )
    yield "Not in it: calls that fail and are repeated or go to another tier, and earlier runs of this job."
    if estimate.budgets:
        yield "What the budgets' present hour and day have spent already is not looked up."
