"""What a call costs, and the most it can cost."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Amount, Request, Usage
from actors.router.cost import WIDEST_MILLI, Bound, Margins, Tariff, image_tokens
from actors.settings import Price, TierSettings


def tariff(price: Price, **settings: object) -> Tariff:
    tier = {"name": "t", "model": "m", "base_url": "http://x", **settings}
    return Tariff(price, TierSettings.model_validate(tier))


def request(prompt_bound: int = 0, **fields: object) -> Request:
    return Request("r", "/chat/completions", b"{}", b"", prompt_bound, None)._replace(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("price", "usage", "usd_micros"),
    [
        (Price(prompt=2.5, completion=10), Usage(1000, 100), 3500),
        (Price(prompt=0.15, completion=0.6), Usage(1, 0), 1),
        (Price(prompt=0.15, completion=0.6), Usage(7, 3), 3),
        (Price(prompt=0, completion=0), Usage(10**6, 10**6), 0),
        (Price(prompt=2.5, completion=10, cached=1.25), Usage(1000, 100, cached_tokens=800), 2500),
        (Price(prompt=2.5, completion=10, cached=0), Usage(1000, 0, cached_tokens=1000), 0),
        (Price(prompt=2.5, completion=10), Usage(1000, 0, cached_tokens=1000), 2500),
        (Price(prompt=2.5, completion=10, cached=0), Usage(10, 0, cached_tokens=1000), 0),
        (Price(prompt=2.5, completion=10), Usage(0, 100, reasoning_tokens=90), 1000),
    ],
)
def test_a_call_costs_what_its_usage_says_rounded_up(price: Price, usage: Usage, usd_micros: int) -> None:
    """In whole micro-dollars; cached prompt tokens at their own price, reasoning as part of the completion."""
    assert tariff(price).cost(usage) == Amount(usage.prompt_tokens + usage.completion_tokens, usd_micros)


@pytest.mark.parametrize("per_million", [0.0375, 0.0125, 0.0001, 0.29, 1.1, 0.1 + 0.2, 75.0])
def test_a_price_is_never_rounded_down(per_million: float) -> None:
    """However fine it is: a million tokens are never booked below their price, and never far above."""
    cost = tariff(Price(prompt=per_million, completion=0)).cost(Usage(1_000_000, 0)).usd_micros
    true = Decimal(str(per_million)) * 1_000_000
    assert true.quantize(Decimal("1e-3")) <= cost <= true + 1


MONEY = st.decimals(0, 200, places=8).map(float)
PRICES = st.builds(Price, prompt=MONEY, completion=MONEY, cached=st.none() | MONEY)


@given(
    price=PRICES,
    prompt_bound=st.integers(0, 200_000),
    max_tokens=st.none() | st.integers(1, 50_000),
    choices=st.integers(1, 4),
    data=st.data(),
)
def test_the_bound_is_never_below_the_cost(
    price: Price, prompt_bound: int, max_tokens: int | None, choices: int, data: st.DataObject
) -> None:
    """Whatever usage comes back within the bounds on its tokens, what was reserved covers it."""
    priced = tariff(price)
    prompt = data.draw(st.integers(0, prompt_bound))
    completion = data.draw(st.integers(0, (max_tokens or 1024) * choices))
    cached = data.draw(st.integers(0, prompt))
    cost = priced.cost(Usage(prompt, completion, cached))
    bound = priced.bound(request(prompt_bound, max_tokens=max_tokens, choices=choices))
    assert cost.tokens <= bound.tokens
    assert cost.usd_micros <= bound.usd_micros
    prices = (price.prompt, price.prompt if price.cached is None else price.cached, price.completion)
    amounts = (prompt - cached, cached, completion)
    assert cost.usd_micros >= sum(Fraction(str(p)) * n for p, n in zip(prices, amounts, strict=True))


def test_embeddings_have_no_completion_to_pay_for() -> None:
    """Their bound is the prompt's alone."""
    assert tariff(Price(prompt=1, completion=100)).bound(request(50, path="/embeddings")) == Amount(50, 50)


def test_every_choice_is_paid_for() -> None:
    """With `n: 3` the completion is bounded three times, and so is what a prediction may add to it."""
    priced = tariff(Price(prompt=0, completion=1))
    assert priced.bound(request(0, max_tokens=10, choices=3)) == Amount(30, 30)
    assert priced.bound(request(0, choices=3)) == Amount(3072, 3072)
    assert priced.bound(request(0, max_tokens=10, choices=3, predicted_tokens=5)) == Amount(45, 45)


# ---- images and what cannot be seen


@pytest.mark.parametrize(
    ("model", "most", "low"),
    [
        ("gpt-4o", 1_445, 85),
        ("openai/gpt-4o-2024-11-20", 1_445, 85),
        ("gpt-4o-mini", 48_169, 2_833),
        ("ft:gpt-4o-mini-2024-07-18:acme::id", 48_169, 2_833),
        ("gpt-4.1-mini", 2_489, 2_489),
        ("gpt-4.1-nano-2025-04-14", 3_779, 3_779),
        ("o4-mini", 2_642, 2_642),
        ("gpt-5", 1_190, 70),
        ("gpt-5.4-mini", 16_384, 16_384),
        ("claude-sonnet-4-5", 4_784, 4_784),
        ("my-deployment", 16_384, 16_384),
    ],
)
def test_an_image_has_at_most_what_its_models_provider_documents(model: str, most: int, low: int) -> None:
    """By the model's name as providers and proxies write it; one that nobody knows has the most that is common."""
    assert image_tokens(model) == (most, low)


def test_images_are_bounded_by_the_tier_that_reads_them() -> None:
    """The same request costs more images at one tier than at another, and a tier's own number wins over the table."""
    asked = request(100, max_tokens=10, images=2, small_images=1)
    free = Price(prompt=1, completion=0)
    assert tariff(free, model="gpt-4o").bound(asked).tokens == 110 + 2 * 1_445 + 85
    assert tariff(free, model="o4-mini").bound(asked).tokens == 110 + 3 * 2_642
    assert tariff(free, model="gpt-4o", image_tokens=500).bound(asked).tokens == 110 + 3 * 500


def test_what_nobody_can_see_is_bounded_by_the_window() -> None:
    """A model reads no more than its window: the tier's own, or what most have."""
    price = Price(prompt=1, completion=1)
    asked = request(100, max_tokens=10, opaque=True)
    assert tariff(price, context_tokens=32_000).bound(asked) == Amount(32_010, 32_010)
    assert tariff(price).bound(asked) == Amount(128_010, 128_010)
    assert tariff(price, context_tokens=50).bound(asked) == Amount(110, 110), "the text counts in any case"


# ---- margins


def test_a_reply_within_its_bound_changes_no_margin() -> None:
    """Not even one that uses all of it."""
    margins = Margins()
    assert margins.widened(Bound(100, 10), Usage(100, 10)) is margins
    wide = Margins(1_500, 1_000)
    assert wide.widened(Bound(100, 10), Usage(150, 10)) is wide


def test_a_margin_grows_to_cover_what_was_seen_and_some_more() -> None:
    """For prompts and completions apart: twice the bound gives 2.2 times; the other stays as it was."""
    margins = Margins().widened(Bound(100, 10), Usage(200, 10))
    assert margins == Margins(2_200, 1_000)
    assert margins.widened(Bound(100, 10), Usage(100, 13)) == Margins(2_200, 1_430)
    price = Price(prompt=1, completion=1)
    assert tariff(price).bound(request(100, max_tokens=10), margins) == Amount(230, 230)


def test_a_margin_has_an_end() -> None:
    """One reply with a nonsensical usage must not lock up a budget."""
    margins = Margins().widened(Bound(100, 10), Usage(10**9, 10**9))
    assert margins == Margins(WIDEST_MILLI, WIDEST_MILLI)


def test_an_embedding_that_has_a_completion_after_all_is_no_measure() -> None:
    """Nothing times anything is nothing: where no completion was expected there is no margin to widen."""
    assert Margins().widened(Bound(100, 0), Usage(100, 50)) == Margins()


TOKENS = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))


@given(replies=st.lists(TOKENS, max_size=20))
def test_a_margin_never_shrinks_and_covers_every_reply_so_far(replies: list[tuple[int, int, int, int]]) -> None:
    """After each reply, the same request would have a bound that covers it, unless the margin is at its end."""
    price, margins = Price(prompt=1, completion=3), Margins()
    for prompt_bound, max_tokens, prompt, completion in replies:
        wider = margins.widened(Bound(prompt_bound, max_tokens), Usage(prompt, completion))
        assert wider.prompt_milli >= margins.prompt_milli
        assert wider.completion_milli >= margins.completion_milli
        margins = wider
        if margins.widest_milli < WIDEST_MILLI:
            bound = tariff(price).bound(request(prompt_bound, max_tokens=max_tokens), margins)
            cost = tariff(price).cost(Usage(prompt, completion))
            assert cost.tokens <= bound.tokens
            assert cost.usd_micros <= bound.usd_micros
