"""The tally: what is counted of a request's attempts, and that the table of metrics knows all of it."""

from actors.events import BOUNDS_S, Tally, Totals
from actors.messages import Amount, Attempt
from actors.observer.metrics import METRICS

MODELS = {"premium": "gpt-big", "spare": "gpt-big", "basic": "gpt-small"}
OK = Attempt(
    "premium", 0, "ok", 200, 0.3, prompt_tokens=100, completion_tokens=20, booked=Amount(120, 450), overrun_tokens=7
)


def tally() -> Tally:
    return Tally("here", MODELS)


def counted(made: Tally) -> dict[tuple[str, ...], int]:
    return {key: count for key, count in made.totals().counters.items() if count}


def test_an_answer_counts_as_request_attempt_tokens_and_cost() -> None:
    made = tally()
    made.request("premium", "ok", (OK,), "/chat/completions", request_id="req_1", seconds=0.9)
    assert counted(made) == {
        ("requests", "premium", "ok"): 1,
        ("attempts", "premium", "ok"): 1,
        ("tokens", "gpt-big", "prompt"): 100,
        ("tokens", "gpt-big", "completion"): 20,
        ("cost", "gpt-big"): 450,
        ("tier_tokens", "premium", "prompt"): 100,
        ("tier_tokens", "premium", "completion"): 20,
        ("tier_cost", "premium"): 450,
        ("overrun_tokens", "premium"): 7,
    }
    distributions = made.totals().distributions
    call = distributions["duration", "gpt-big", "/v1/chat/completions"]
    assert (sum(call.counts), call.sum_us) == (1, 300_000)
    assert call.exemplars[call.counts.index(1)] == ("req_1", 0.3)
    assert distributions["request_duration", "ok"].sum_us == 900_000


def test_tiers_of_one_model_are_summed_by_model_and_kept_apart_by_tier() -> None:
    made = tally()
    for name in ("premium", "spare"):
        made.request(name, "ok", (OK._replace(tier=name),), "/chat/completions")
    counts = counted(made)
    assert counts["cost", "gpt-big"] == 900
    assert (counts["tier_cost", "premium"], counts["tier_cost", "spare"]) == (450, 450)
    assert sum(made.totals().distributions["duration", "gpt-big", "/v1/chat/completions"].counts) == 2


def test_what_nobody_saw_the_usage_of_is_cost_but_no_tokens() -> None:
    """A call lost with its actor is booked whole: dollars count it, tokens do not, and both say how much is unknown."""
    made = tally()
    lost = Attempt("basic", 1, "lost", 0, 0.0, "gone", booked=Amount(500, 900))
    answer = OK._replace(tier="basic", booked=Amount(120, 200), overrun_tokens=0)
    made.request("basic", "ok", (lost, answer), "/chat/completions")
    counts = counted(made)
    assert counts["attempts", "basic", "lost"] == 1
    assert counts["cost", "gpt-small"] == 1100
    assert (counts["unknown_tokens", "basic"], counts["unknown_cost", "basic"]) == (500, 900)
    assert counts["tokens", "gpt-small", "prompt"] == 100
    assert sum(made.totals().distributions["duration", "gpt-small", "/v1/chat/completions"].counts) == 1


def test_a_refusal_by_the_budget_is_no_call() -> None:
    made = tally()
    made.request("basic", "budget_exceeded", (Attempt("basic", 0, "budget_exceeded", 0, 0.0),))
    assert counted(made) == {("requests", "basic", "budget_exceeded"): 1}


def test_shared_refused_and_misfitting_answers_are_counted_by_name() -> None:
    made = tally()
    made.request("premium", "coalesced")
    made.request("none", "runaway_loop")
    misfit = OK._replace(misfit=True, booked=Amount())
    made.request("premium", "invalid_output", (misfit, misfit), "/chat/completions", "sort@3")
    counts = counted(made)
    assert (counts["coalesced",], counts["runaway",]) == (1, 1)
    assert counts["structured_failures", "sort", "3", "premium"] == 2
    assert counts["prompt_requests", "sort", "3", "invalid_output"] == 1
    assert counts.get(("prompt_cost", "sort", "3"), 0) == 0


def test_a_prompt_version_has_its_own_requests_tokens_and_cost() -> None:
    """So that a ratio by version can be made: of refused answers, of cost per request."""
    made = tally()
    made.request("premium", "ok", (OK, OK), "/chat/completions", "sort@3")
    made.request("premium", "coalesced", (), "/chat/completions", "sort@3")
    counts = counted(made)
    assert counts["prompt_requests", "sort", "3", "ok"] == counts["prompt_requests", "sort", "3", "coalesced"] == 1
    assert (counts["prompt_tokens", "sort", "3"], counts["prompt_cost", "sort", "3"]) == (240, 900)


def test_answers_that_were_checked_are_what_misfits_are_a_share_of() -> None:
    """Calls that failed and answers nobody held against a schema are not among them."""
    made = tally()
    down = OK._replace(kind="server", booked=Amount())
    answers = (OK._replace(misfit=True), down, OK)
    made.request("premium", "ok", answers, "/chat/completions", "sort@3", seconds=0.9, checked=True)
    made.request("premium", "ok", (OK,), "/chat/completions", "sort@3")
    counts = counted(made)
    assert counts["structured_answers", "sort", "3", "premium"] == 2
    assert counts["structured_failures", "sort", "3", "premium"] == 1


def test_prompt_versions_without_end_make_no_labels_without_end() -> None:
    made = tally()
    misfit = OK._replace(misfit=True)
    for number in range(3000):
        made.attempts((misfit,), "/chat/completions", f"p{number}@1")
    versions = [key for key in made.totals().counters if key[0] == "structured_failures"]
    assert len(versions) <= 1001
    assert made.totals().counters["structured_failures", "other", "none", "premium"] == 2000


def test_totals_are_values_of_their_moment() -> None:
    """What was drawn up does not change when counting goes on, and every next one has a larger sequence."""
    made = tally()
    made.request("premium", "ok", (OK,), "/chat/completions", seconds=0.1)
    first = made.totals()
    kept = Totals(first.source, first.sequence, dict(first.counters), dict(first.distributions))
    made.request("premium", "ok", (OK,), "/chat/completions", seconds=0.1)
    assert first == kept
    assert made.totals().sequence > first.sequence


def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_pass() -> None:
    made = tally()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[-1], 1e6):
        made.attempts((OK._replace(duration_s=seconds),), "/completions")
    counts = made.totals().distributions["duration", "gpt-big", "/v1/completions"].counts
    assert (counts[0], counts[len(BOUNDS_S) - 1], counts[-1]) == (2, 1, 1)


def test_a_stream_tells_its_first_token_and_its_pace() -> None:
    """And whole answers, which have neither, are not in those distributions."""
    made = tally()
    made.attempts((OK, OK._replace(first_token_s=0.03, per_token_s=0.015)), "/chat/completions", request_id="req")
    found = made.totals().distributions
    assert (sum(found["first_token", "gpt-big"].counts), found["first_token", "gpt-big"].sum_us) == (1, 30_000)
    assert (sum(found["per_token", "gpt-big"].counts), found["per_token", "gpt-big"].sum_us) == (1, 15_000)


def test_the_table_knows_every_key_and_its_labels() -> None:
    made = tally()
    lost = Attempt("basic", 1, "lost", 0, 0.0, booked=Amount(5, 9))
    made.request("premium", "coalesced", (OK._replace(misfit=True), lost), "/embeddings", "sort@3", "req", 0.1, True)
    made.request("none", "runaway_loop")
    made.attempts((OK._replace(first_token_s=0.1, per_token_s=0.01, malformed_events=1),), "/chat/completions")
    made.add(("redone",), 1)
    totals = made.totals()
    table = {metric.key: metric for metric in METRICS}
    for key in (*totals.counters, *totals.distributions):
        assert len(table[key[0]].labels) == len(key) - 1, key
    assert {table[key[0]].kind for key in totals.counters} == {"counter"}
    assert {table[key[0]].kind for key in totals.distributions} == {"histogram"}


def test_a_tier_is_told_before_anything_has_happened() -> None:
    """What Prometheus first sees of a counter is no increase to it: a loop's first dollars must not be missed for that."""
    counters = Tally("door", {"premium": "gpt", "basic": "small"}).totals().counters
    assert (
        counters["tier_cost", "premium"] == counters["tier_tokens", "basic", "prompt"] == counters["cost", "gpt"] == 0
    )
