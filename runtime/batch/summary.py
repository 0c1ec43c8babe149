"""The closing summary of `raycade batch`, for somebody who has never seen one: what happened, in numbers and in words.

`summary_dict` gathers it as plain data (for JSON), `print_summary` tells it. Rows are told for this run, since cost,
calls and duration are this run's; what earlier runs did is one line. How amounts are written (`dollars`, `short`,
`span`) and what failures are called is said here once, for the progress display and the estimate too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.events import NOT_A_CALL
from runtime.batch.journal import Journal, journal_folder
from runtime.batch.run import BatchRun, Ending
from runtime.config import Config

__all__ = ["counted", "dollars", "kinds_in_words", "print_summary", "rows", "short", "span", "summary_dict"]

WIDE = 100
"""Columns from which on the table of tiers has room for everything."""

KINDS = {
    "server": "500s",
    "rate_limited": "429s",
    "overloaded": "overloaded",
    "timeout": "timeouts",
    "connection": "no connection",
    "malformed": "broken answers",
    "lost": "lost with an actor",
    "auth": "key refused",
    "not_found": "model not found",
    "context_length": "prompt too long",
    "content_filter": "content filter",
    "bad_request": "request refused",
    "cancelled": "cancelled",
    "internal": "internal error",
}
"""What a failed call is called; the order in which kinds are told."""

CODES = KINDS | {
    "all_tiers_exhausted": "every tier failed",
    "no_tier": "no tier is good enough",
    "deadline": "not done in time",
    "budget_exceeded": "over the budget of one request",
    "runaway_loop": "repeated too often",
    "invalid_output": "answer does not fit the schema",
    "invalid_json": "not JSON",
    "invalid_utf8": "not UTF-8",
    "row_too_large": "row too large",
    "missing_custom_id": "no custom_id",
    "duplicate_custom_id": "custom_id used twice",
    "invalid_method": "wrong method",
    "unknown_url": "unknown url",
    "unknown_model": "unknown model",
    "invalid_body": "wrong body",
    "invalid_prompt": "wrong prompt",
}
"""What a failed row's error code means; the code itself stands in the errors file."""


# -- how amounts are written ---------------------------------------------------------------------------------------


def short(number: int) -> str:
    """At most six characters: 9,999, 12.3K, 456K, 1.2M."""
    if number < 10_000:
        return f"{number:,}"
    for limit, unit, letter in ((999_500, 1_000, "K"), (999_500_000, 1_000_000, "M")):
        if number < limit:
            value = number / unit
            return f"{value:.0f}{letter}" if value >= 99.95 else f"{value:.1f}{letter}"
    return f"{number / 1e9:,.1f}B"


def dollars(usd_micros: int) -> str:
    """Cents where there are dollars, and as much more as an amount below one dollar needs to be told from nothing."""
    if usd_micros >= 1_000_000 or not usd_micros:
        return f"${usd_micros / 1e6:,.2f}"
    text = f"{usd_micros / 1e6:.{4 if usd_micros >= 1_000 else 6}f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0'):0<2}"


def span(seconds: float) -> str:
    """A length of time, in its two largest units: 2 min 10 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, unit, part, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def counted(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """`timeouts: 3, 500s: 2`: the most frequent first, those without words by their own name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{words.get(name, name)}: {count:,}" for name, count in ordered if count)


def kinds_in_words(kinds: Mapping[str, int]) -> str:
    """Failed calls by kind, always in the same order, so that a line that is redrawn does not jump."""
    known = [name for name in KINDS if kinds.get(name)]
    other = sorted(name for name in kinds if name != "ok" and name not in KINDS and name not in NOT_A_CALL)
    return ", ".join(f"{KINDS.get(name, name)}: {kinds[name]:,}" for name in known + other)


# -- the summary as data -------------------------------------------------------------------------------------------


def summary_dict(
    config: Config,
    journal: Journal,
    run: BatchRun,
    ending: Ending,
    duration_s: float,
    out: str,
    errors: str,
    total_rows: int | None = None,
) -> dict[str, Any]:
    """All that the summary tells. `total_rows`: rows of the whole input, or up to the limit, where they are known."""
    tally = run.tally
    earlier = max(0, len(journal.done) - tally.done)
    if not ending.stop:
        not_done: int | None = 0
    else:
        not_done = None if total_rows is None else max(0, total_rows - len(journal.done))
    return {
        "ending": {"stop": ending.stop, "message": ending.message},
        "duration_s": round(duration_s, 3),
        "rows_per_s": round(tally.done / duration_s, 2) if duration_s > 0 else 0.0,
        "rows": {
            "succeeded": tally.succeeded,
            "failed": tally.failed,
            "failed_by_code": dict(tally.codes.most_common()),
            "earlier": earlier,
            "not_done": not_done,
            "under_way": run.in_flight,
        },
        "all_runs": {"succeeded": journal.succeeded, "failed": journal.failed},
        "tokens": {
            "prompt": tally.prompt_tokens,
            "completion": tally.completion_tokens,
            "total": tally.prompt_tokens + tally.completion_tokens,
        },
        "cost_usd": tally.cost_usd_micros / 1e6,
        "coalesced": {"rows": tally.coalesced, "saved_tokens": tally.saved_tokens},
        "without_usage": {"answers": tally.unmetered, "booked_tokens": tally.unmetered_tokens},
        "asked_again": tally.asked_again,
        "hedged": {"copies": tally.hedged, "won": tally.hedges_won},
        "sent_again": tally.redone,
        "fell_back": {"rows": sum(tally.fell_back.values()), "from": dict(tally.fell_back.most_common())},
        "tiers": [_tier_dict(tier.name, tier.model, run) for tier in config.tiers],
        "files": {"out": out, "errors": errors, "journal": str(journal_folder(out))},
    }


def _tier_dict(name: str, model: str, run: BatchRun) -> dict[str, Any]:
    tally = run.tally
    kinds = {kind: count for (tier, kind), count in tally.attempts.items() if tier == name and kind not in NOT_A_CALL}
    answered, cancelled = kinds.pop("ok", 0), kinds.pop("cancelled", 0)
    return {
        "name": name,
        "model": model,
        "calls": answered + cancelled + sum(kinds.values()),
        "answered": answered,
        "cancelled": cancelled,
        "failed": sum(kinds.values()),
        "failed_by_kind": kinds,
        "rows": tally.served[name],
        "tokens": tally.tier_tokens[name],
        "cost_usd": tally.tier_cost_usd_micros[name] / 1e6,
        "breaker_opened": tally.opened[name],
        "overrun_tokens": tally.overrun_tokens[name],
        "margin": max(1000, tally.margins_milli[name]) / 1000,
    }


# -- the summary in words ------------------------------------------------------------------------------------------


def print_summary(
    config: Config,
    journal: Journal,
    run: BatchRun,
    ending: Ending,
    duration_s: float,
    out: str,
    errors: str,
    console: Console,
    total_rows: int | None = None,
) -> None:
    """Tell it on `console`: rows, tiers, what was remarkable, where the files lie, how it ended and how to go on."""
    told = summary_dict(config, journal, run, ending, duration_s, out, errors, total_rows)
    console.print()
    console.print(_rows_table(told))
    console.print()
    wide = console.width >= WIDE
    console.print(_tiers_table(told["tiers"], wide))
    console.print()
    for sentence in _sentences(told, wide):
        console.print(Text(sentence))
    console.print()
    files = told["files"]
    for label, name in (("answers", files["out"]), ("errors", files["errors"]), ("journal", files["journal"])):
        if label != "errors" or journal.failed:
            # Not folded, whatever the width, so that a name can be copied.
            console.print(Text.assemble((f"{label:<9}", "dim"), name), soft_wrap=True)
    console.print()
    good = not ending.stop and not journal.failed
    for number, sentence in enumerate(_ending(told)):
        console.print(Text(sentence, style="" if number else "bold green" if good else "bold yellow"))


def _rows_table(told: Mapping[str, Any]) -> Table:
    counts = told["rows"]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("rows succeeded", f"{counts['succeeded']:,}", "")
    table.add_row("rows failed", f"{counts['failed']:,}", counted(counts["failed_by_code"], CODES))
    if counts["earlier"]:
        both = told["all_runs"]
        together = f"all runs together: {both['succeeded']:,} succeeded, {both['failed']:,} failed"
        table.add_row("done by earlier runs", f"{counts['earlier']:,}", together)
    left = counts["not_done"]
    table.add_row("not done", "" if left is None else f"{left:,}", "the rest of the input" if left is None else "")
    return table


def _tiers_table(tiers: list[dict[str, Any]], wide: bool) -> Table:
    """One line a tier. On a narrow terminal what the sentences below tell as well is left out."""
    priced = any(tier["cost_usd"] is not None for tier in tiers)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("tier", overflow="fold")
    names = ["calls", *(["answered"] if wide else []), "failed", *(["why"] if wide else []), "rows", "tokens"]
    names += [*(["cost"] if priced else []), *(["breaker opened"] if wide else [])]
    for name in names:
        table.add_column(name, justify="left" if name == "why" else "right", no_wrap=name != "why")
    for tier in tiers:
        cells = {
            "calls": f"{tier['calls']:,}",
            "answered": f"{tier['answered']:,}",
            "failed": f"{tier['failed']:,}",
            "why": kinds_in_words(tier["failed_by_kind"]),
            "rows": f"{tier['rows']:,}",
            "tokens": f"{tier['tokens']:,}",
            "cost": dollars(round(tier["cost_usd"] * 1e6)),
            "breaker opened": times(tier["breaker_opened"]) if tier["breaker_opened"] else "never",
        }
        table.add_row(tier["name"], *(Text(cells[name]) for name in names))
    return table


def _sentences(told: Mapping[str, Any], wide: bool) -> Iterator[str]:
    """What was remarkable, one line each."""
    if not wide:
        for tier in told["tiers"]:
            if tier["failed"]:
                yield f"Calls to {tier['name']} that failed: {kinds_in_words(tier['failed_by_kind'])}."
    fell = told["fell_back"]
    for name, count in fell["from"].items():
        yield f"{rows(count)} fell back from {name} to another tier."
    shared = told["coalesced"]
    if shared["rows"]:
        yield f"{rows(shared['rows'])} shared another row's answer, which saved {shared['saved_tokens']:,} tokens."
    hedged = told["hedged"]
    if hedged["copies"]:
        yield f"{rows(hedged['copies'])} had a second call because the first was late; it was quicker {times(hedged['won'])}."
    for tier in told["tiers"]:
        if tier["breaker_opened"]:
            yield (
                f"The circuit breaker of {tier['name']} opened {times(tier['breaker_opened'])}: it kept failing, "
                "so it was left alone for a while."
            )
    if told["sent_again"]:
        yield f"{rows(told['sent_again'])} had to be sent again because the actor that held them died."
    without = told["without_usage"]
    if without["answers"]:
        each, came = ("it was", "answer") if without["answers"] == 1 else ("each was", "answers")
        yield (
            f"{without['answers']:,} {came} came without usage; {each} booked at its reservation "
            f"({without['booked_tokens']:,} tokens in all)."
        )
    for tier in told["tiers"]:
        margin = f"(margin of {tier['name']} is now {tier['margin']:.2g})"
        if tier["overrun_tokens"]:
            yield f"{tier['overrun_tokens']:,} tokens above reservations, charged all the same {margin}."
        elif tier["margin"] > 1:
            yield f"{tier['name']} passed the bound of a prompt or an answer, though no reservation {margin}."
    tokens = told["tokens"]
    yield (
        f"It cost {dollars(round(told['cost_usd'] * 1e6))} for {tokens['total']:,} tokens "
        f"({tokens['prompt']:,} in prompts, {tokens['completion']:,} in answers)."
    )
    done = told["rows"]["succeeded"] + told["rows"]["failed"]
    yield f"{rows(done)} in {span(told['duration_s'])}: {told['rows_per_s']:,.{0 if told['rows_per_s'] >= 100 else 1}f} rows/s."


def _ending(told: Mapping[str, Any]) -> Iterator[str]:
    """How it ended, then how to go on."""
    stop, message = told["ending"]["stop"], told["ending"]["message"]
    failed, under_way = told["all_runs"]["failed"], told["rows"]["under_way"]
    resume = "The same command goes on where it stopped"
    again = "--fresh starts over and removes these files first."
    match stop:
        case "":
            if not failed:
                yield "Finished: every row has its answer."
                return
            yield f"Finished: every row is done, {failed:,} of them without an answer; the errors file says why."
            yield f"Failed rows count as done and are not tried again. {again}"
        case "budget":
            yield f"Stopped by a budget: {message}."
            yield f"{resume}, once the budget has been raised, its window has turned or what was halted is resumed. {again}"
        case "interrupted":
            yield "Interrupted: the rows that were in flight have been finished."
            yield f"{resume}. {again}"
        case "killed":
            yield f"Stopped at once: {rows(under_way)} in flight were given up; their calls may have been paid for."
            yield f"{resume} and does these rows again. {again}"
        case "input":
            yield f"Stopped: {message}"
            yield f"What could be read before that is done. {resume} when the input is whole and otherwise the same."
        case _:
            yield f"Stopped: {message}"
            yield f"{resume}. {again}"
