"""What a call costs, and the most it can cost."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Amount, Request, Usage
from actors.router.cost import IMAGE_TOKENS, TEMPLATE_TOKENS, Tariff, prompt_bound_tokens
from actors.settings import Price


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
    assert Tariff(price, 100).cost(usage) == Amount(usage.prompt_tokens + usage.completion_tokens, usd_micros)


@pytest.mark.parametrize("per_million", [0.0375, 0.0125, 0.0001, 0.29, 1.1, 0.1 + 0.2, 75.0])
def test_a_price_is_never_rounded_down(per_million: float) -> None:
    """However fine it is: a million tokens are never booked below their price, and never far above."""
    cost = Tariff(Price(prompt=per_million, completion=0), 1).cost(Usage(1_000_000, 0)).usd_micros
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
    tariff = Tariff(price, 1024)
    prompt = data.draw(st.integers(0, prompt_bound))
    completion = data.draw(st.integers(0, (max_tokens or 1024) * choices))
    cached = data.draw(st.integers(0, prompt))
    cost = tariff.cost(Usage(prompt, completion, cached))
    bound = tariff.bound(request(prompt_bound, max_tokens=max_tokens, choices=choices))
    assert cost.tokens <= bound.tokens
    assert cost.usd_micros <= bound.usd_micros
    prices = (price.prompt, price.prompt if price.cached is None else price.cached, price.completion)
    amounts = (prompt - cached, cached, completion)
    assert cost.usd_micros >= sum(Fraction(str(p)) * n for p, n in zip(prices, amounts, strict=True))


def test_embeddings_have_no_completion_to_pay_for() -> None:
    """Their bound is the prompt's alone."""
    tariff = Tariff(Price(prompt=1, completion=100), 1024)
    assert tariff.bound(request(50, path="/embeddings")) == Amount(50, 50)


def test_every_choice_is_paid_for() -> None:
    """With `n: 3` the completion is bounded three times."""
    tariff = Tariff(Price(prompt=0, completion=1), 1024)
    assert tariff.bound(request(0, max_tokens=10, choices=3)) == Amount(30, 30)
    assert tariff.bound(request(0, choices=3)) == Amount(3072, 3072)


def test_a_prompt_has_no_more_tokens_than_its_body_has_bytes() -> None:
    """Plus what a chat template adds; multi-byte characters count their bytes."""
    body = '{"messages":[{"role":"user","content":"größer 🎉"}]}'.encode()
    assert prompt_bound_tokens(body) == len(body) + TEMPLATE_TOKENS


def test_images_given_by_address_are_bounded_by_a_fixed_number_each() -> None:
    """An address is short, and what it stands for is not."""
    body = b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"http://x/1"}}]}]}'
    assert prompt_bound_tokens(body) >= len(body) + TEMPLATE_TOKENS + IMAGE_TOKENS
