"""What a call costs, and the most it can cost: whole tokens and whole micro-dollars.

A price of 1 USD per million tokens is 1 micro-dollar per token. Prices are kept in millionths of that, and every
price and amount is rounded up, so that no sum of rounded amounts is ever less than the truth.

The bound of an attempt is what budgets set aside for it. measure.py says what it is made of; here a tier adds what
depends on it: tokens per image, its context window, its own limit of the completion, its price. It rests on four things:
the provider honours the limit of the completion and its price list, bytes bound the tokens of text, images and tools
keep to what their provider documents, and a model reads no more than its window. Where a reply shows that one of them
does not hold, the excess is charged, and the tier's `Margins` widen so that the next bounds hold.

Not in it: what a provider charges by the call and not by the token (web searches, code containers, stored files), dearer
service tiers, and audio where it is dearer than text. Give such a tier the dear price.
"""

import math
from typing import NamedTuple

from actors.messages import Amount, Request, Usage
from actors.settings import Price, TierSettings

__all__ = ["NO_MARGINS", "Bound", "Margins", "Tariff", "image_tokens"]

PARTS = 1_000_000
"""Of a micro-dollar: prices such as 0.0125 USD per million tokens are whole numbers of them."""
MILLI = 1_000
WIDEST_MILLI = 4_000
"""A tier that uses more than four times what it was allowed does not honour its bound at all; no margin makes it."""
ROOM_PERCENT = 110
"""Replies differ: the next may use a little more than the one that widened the margin."""
CONTEXT_TOKENS = 128_000
"""The window of a tier that names none: what most models of the last years have. Those with more should say so."""


# -- images --------------------------------------------------------------------------------------------------------

UNKNOWN_IMAGE_TOKENS = 16_384
"""For models that are not listed: the most that Qwen-VL's default allows, and above what any but gpt-4o-mini has."""

TILES = 8
"""OpenAI fits an image into 2048 x 2048 and scales its short side to 768: at most 4 x 2 tiles of 512 x 512."""
PATCHES = 1_536
"""OpenAI shrinks an image until it has no more than these patches of 32 x 32, and multiplies by the model's factor."""

# Most tokens of one image by the model's name (the longest name that fits counts), and with `detail: low` where that is
# honoured. Sources:
#   OpenAI     platform.openai.com/docs/guides/images-vision, "Calculating costs". Models from gpt-5.1 on have larger
#              budgets (10,000 patches at 1.2 measured, with `detail: original`): they count as unknown.
#   Anthropic  platform.claude.com/docs/en/build-with-claude/vision: 4,784 since Claude Opus 4.7, about 1,600 before
#   Google     ai.google.dev/gemini-api/docs/media-resolution: 256 and up to about 2,048 for crops before Gemini 3,
#              1,120 and at most 2,240 since
#   Qwen-VL    model cards: 4 to 16,384 by default
#   Llama      docs.together.ai/docs/vision-overview: 1,601 a tile, at most 4
IMAGES: dict[str, tuple[int, int | None]] = {
    "gpt-4o-mini": (2_833 + 5_667 * TILES, 2_833),
    "gpt-4o": (85 + 170 * TILES, 85),
    "chatgpt-4o": (85 + 170 * TILES, 85),
    "gpt-4.1": (85 + 170 * TILES, 85),
    "gpt-4.1-mini": (-(-PATCHES * 162 // 100), None),
    "gpt-4.1-nano": (-(-PATCHES * 246 // 100), None),
    "gpt-4.5": (85 + 170 * TILES, 85),
    "gpt-4-turbo": (85 + 170 * TILES, 85),
    "gpt-5": (70 + 140 * TILES, 70),
    "gpt-5-mini": (-(-PATCHES * 162 // 100), None),
    "gpt-5-nano": (-(-PATCHES * 246 // 100), None),
    "gpt-5.": (UNKNOWN_IMAGE_TOKENS, None),
    "o1": (75 + 150 * TILES, 75),
    "o3": (75 + 150 * TILES, 75),
    "o4-mini": (-(-PATCHES * 172 // 100), None),
    "computer-use-preview": (65 + 129 * TILES, 65),
    "claude": (4_784, None),
    "gemini": (2_304, None),
    "llama": (1_601 * 4, None),
}


def image_tokens(model: str) -> tuple[int, int]:
    """The most tokens of one image at a model of this name, and of one with `detail: low`."""
    # `openai/gpt-4o` of a proxy, `ft:gpt-4o:...` of a fine-tuned model
    name = model.lower().removeprefix("ft:").rpartition("/")[2]
    fitting = [known for known in IMAGES if name.startswith(known)]
    most, low = IMAGES[max(fitting, key=len)] if fitting else (UNKNOWN_IMAGE_TOKENS, None)
    return most, most if low is None else low


# -- bounds --------------------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """The most tokens that an attempt should use, before any margin."""

    prompt_tokens: int
    completion_tokens: int


class Margins(NamedTuple):
    """By how much a tier's bounds are multiplied, in thousandths: what its replies have shown to be needed.

    They grow and never shrink while the router lives. That most replies stay within their bounds says nothing about
    those that do not: a margin that shrank would be passed again by the same kind of request. Too wide a margin costs
    little, since what is not used is free again with the reply. A new router starts without, as prices and models may
    have been put right.
    """

    prompt_milli: int = MILLI
    completion_milli: int = MILLI

    @property
    def widest_milli(self) -> int:
        return max(self)

    def widened(self, bound: Bound, usage: Usage) -> "Margins":
        """The margins after a reply: the same, unless its usage passes what they would have allowed it."""
        if usage.prompt_tokens <= bound.prompt_tokens and usage.completion_tokens <= bound.completion_tokens:
            return self
        prompt = _wider(self.prompt_milli, bound.prompt_tokens, usage.prompt_tokens)
        completion = _wider(self.completion_milli, bound.completion_tokens, usage.completion_tokens)
        return self if (prompt, completion) == self else Margins(prompt, completion)


NO_MARGINS = Margins()


def _wider(milli: int, bound: int, used: int) -> int:
    if not bound or used * MILLI <= bound * milli:
        return milli
    return max(milli, min(WIDEST_MILLI, -(-used * MILLI * ROOM_PERCENT // (bound * 100))))


class Tariff:
    """A tier's price, in millionths of a micro-dollar per token, and what bounds an attempt there."""

    __slots__ = (
        "_cached",
        "_completion",
        "_prompt",
        "_small_image",
        "context_tokens",
        "image_tokens",
        "max_output_tokens",
    )

    def __init__(self, price: Price, tier: TierSettings) -> None:
        self._prompt = _parts(price.prompt)
        self._completion = _parts(price.completion)
        self._cached = self._prompt if price.cached is None else _parts(price.cached)
        self.max_output_tokens = tier.max_output_tokens
        self.context_tokens = tier.context_tokens or CONTEXT_TOKENS
        self.image_tokens, self._small_image = (
            image_tokens(tier.model) if tier.image_tokens is None else (tier.image_tokens, tier.image_tokens)
        )

    def cost(self, usage: Usage) -> Amount:
        """What the provider charges for `usage`."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        parts = (
            (usage.prompt_tokens - cached) * self._prompt
            + cached * self._cached
            + usage.completion_tokens * self._completion
        )
        return Amount(usage.prompt_tokens + usage.completion_tokens, -(-parts // PARTS))

    def of_images(self, request: Request) -> int:
        """The most tokens that the request's images can have here."""
        return request.images * self.image_tokens + request.small_images * self._small_image

    def tokens(self, request: Request) -> Bound:
        """The most tokens that one attempt of `request` should use at this tier."""
        prompt = request.prompt_bound_tokens + self.of_images(request)
        if request.opaque:
            prompt = max(prompt, self.context_tokens)
        if request.path == "/embeddings":
            return Bound(prompt, 0)
        allowed = request.max_tokens or self.max_output_tokens
        return Bound(prompt, (allowed + request.predicted_tokens) * request.choices)

    def bound(self, request: Request, margins: Margins = NO_MARGINS) -> Amount:
        """The most that one attempt of `request` can cost at this tier: what is reserved for it."""
        return self.most(self.tokens(request), margins)

    def most(self, tokens: Bound, margins: Margins) -> Amount:
        """What so many tokens cost at most, with the tier's margins."""
        prompt, completion = tokens
        if margins is not NO_MARGINS:
            prompt = -(-prompt * margins.prompt_milli // MILLI)
            completion = -(-completion * margins.completion_milli // MILLI)
        dearest = max(self._prompt, self._cached)
        return Amount(prompt + completion, -(-(prompt * dearest + completion * self._completion) // PARTS))


def _parts(usd_per_million: float) -> int:
    # The inner rounding takes away what binary fractions add, such as the 1e-16 in 1.1.
    return math.ceil(round(usd_per_million * PARTS, 3))
