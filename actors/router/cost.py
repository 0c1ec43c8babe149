"""What a call costs, and the most it can cost: whole tokens and whole micro-dollars.

A price of 1 USD per million tokens is 1 micro-dollar per token. Prices are kept in millionths of that, and every
price and amount is rounded up, so that no sum of rounded amounts is ever less than the truth.

The bound of a prompt is the number of bytes of its request body: a byte-level tokenizer never makes more tokens than
there are UTF-8 bytes, and the JSON around each message is longer than the few tokens that chat templates add for it.
`TEMPLATE_TOKENS` covers what a template adds once. An image given by address is not bounded by its bytes, so each
counts `IMAGE_TOKENS`.
"""

import math

from actors.messages import Amount, Request, Usage
from actors.settings import Price

__all__ = ["Tariff", "prompt_bound_tokens"]

TEMPLATE_TOKENS = 32
IMAGE_TOKENS = 3_000
PARTS = 1_000_000
"""Of a micro-dollar: prices such as 0.0125 USD per million tokens are whole numbers of them."""


def prompt_bound_tokens(body: bytes) -> int:
    """The most tokens the prompt of this request body can have."""
    images = body.count(b'"image_url"') if b'"image_url"' in body else 0
    return len(body) + TEMPLATE_TOKENS + images * IMAGE_TOKENS


class Tariff:
    """A tier's price, in millionths of a micro-dollar per token."""

    __slots__ = ("_cached", "_completion", "_prompt", "max_output_tokens")

    def __init__(self, price: Price, max_output_tokens: int) -> None:
        self._prompt = _parts(price.prompt)
        self._completion = _parts(price.completion)
        self._cached = self._prompt if price.cached is None else _parts(price.cached)
        self.max_output_tokens = max_output_tokens

    def cost(self, usage: Usage) -> Amount:
        """What the provider charges for `usage`."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        parts = (
            (usage.prompt_tokens - cached) * self._prompt
            + cached * self._cached
            + usage.completion_tokens * self._completion
        )
        return Amount(usage.prompt_tokens + usage.completion_tokens, -(-parts // PARTS))

    def bound(self, request: Request) -> Amount:
        """The most one attempt of `request` can cost at this tier."""
        completion = 0
        if request.path != "/embeddings":
            completion = (request.max_tokens or self.max_output_tokens) * request.choices
        prompt = request.prompt_bound_tokens
        dearest = max(self._prompt, self._cached)
        return Amount(prompt + completion, -(-(prompt * dearest + completion * self._completion) // PARTS))


def _parts(usd_per_million: float) -> int:
    # The inner rounding takes away what binary fractions add, such as the 1e-16 in 1.1.
    return math.ceil(round(usd_per_million * PARTS, 3))
