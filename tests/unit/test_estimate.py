"""`--dry-run`: rows counted and checked as in a run, tokens and dollars bounded, budgets held against them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from runtime.batch.estimate import Estimate, estimate, print_estimate
from runtime.batch.reader import open_input
from runtime.batch.rows import Encoder
from runtime.config import Config, resolve_prices

TIERS = [
    {
        "name": "premium",
        "model": "gpt-4o",
        "base_url": "http://127.0.0.1:1",
        "quality": "high",
        "price": {"prompt": 2.5, "completion": 10.0},
        "max_output_tokens": 100,
    },
    {
        "name": "standard",
        "model": "gpt-4o-mini",
        "base_url": "http://127.0.0.1:1",
        "price": {"prompt": 0.15, "completion": 0.6},
        "max_output_tokens": 200,
    },
]


def row(custom_id: str, text: str = "hello", **body: Any) -> bytes:
    whole = {"messages": [{"role": "user", "content": text}], **body}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": whole})


def estimated(
    folder: Path, lines: list[bytes], budget: Mapping[str, Any] | None = None, *, rank: int = 0, **options: Any
) -> Estimate:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    config = Config.model_validate({"tiers": TIERS, "budget": budget or {}})
    encoder = Encoder(config.tiers, min_quality=rank, deadline_s=600, job="dry-run", share=True)
    share, limit = options.pop("share", True), options.pop("limit", None)
    return estimate(open_input(str(path)), encoder, config, resolve_prices(config), share, limit, **options)


def told(found: Estimate, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_estimate(found, console)
    return console.export_text()


def test_counts_and_checks_every_row(tmp_path: Path) -> None:
    """Each row is good, equal to an earlier one, or wrong under the very code that a run would write."""
    lines = [row("a"), row("b"), row("c", "other"), b"not json", row("a", "x"), row("d", model="gpt-9"), b"{}"]
    found = estimated(tmp_path, lines)
    assert (found.rows, found.calls, found.shared) == (7, 2, 1)
    assert found.codes == {"invalid_json": 1, "duplicate_custom_id": 1, "unknown_model": 1, "missing_custom_id": 1}
    assert found.errors[0].startswith(f"{tmp_path}/in.jsonl:4: expected one JSON object")
    assert found.errors[1].startswith(f"{tmp_path}/in.jsonl:5: custom_id: ")


def test_without_sharing_equal_rows_are_all_called(tmp_path: Path) -> None:
    """With --no-dedupe every row is a call."""
    assert estimated(tmp_path, [row("a"), row("b")], share=False).calls == 2


def test_a_limit_ends_the_look(tmp_path: Path) -> None:
    """With --limit what comes after the first rows is neither counted nor checked, and that is said."""
    found = estimated(tmp_path, [row("a"), row("b", "other"), b"not json"], limit=2)
    assert (found.rows, found.calls, found.codes) == (2, 2, {})
    assert "Only the first 2 rows were looked at" in told(found)


def test_tokens_and_dollars_at_the_tier_where_a_row_starts(tmp_path: Path) -> None:
    """Likely is a token every 4 bytes and half an answer; at most is what a run would reserve, n and max_tokens told."""
    found = estimated(tmp_path, [row("a"), row("b", model="standard", max_tokens=10, n=3)])
    premium, standard = found.tiers
    body = len(orjson.dumps({"messages": [{"role": "user", "content": "hello"}]}))
    assert (premium.calls, premium.likely_prompt_tokens, premium.most_completion_tokens) == (1, -(-body // 4), 100)
    assert premium.most_prompt_tokens == body + 32
    assert premium.likely.tokens == -(-body // 4) + 50
    assert premium.most.usd_micros == -(-(premium.most_prompt_tokens * 2500 + 100 * 10_000) // 1000)
    assert (standard.calls, standard.most_completion_tokens) == (1, 30)
    assert found.most.tokens == premium.most.tokens + standard.most.tokens


def test_images_and_hidden_content_are_counted_and_told(tmp_path: Path) -> None:
    """Images by the model's own bound, hidden content by the window; the reader learns what both figures rest on."""
    image = {"type": "image_url", "image_url": {"url": "https://x/1.png"}}
    file = {"type": "file", "file": {"file_id": "f-1"}}
    found = estimated(
        tmp_path,
        [
            row("a", messages=[{"role": "user", "content": [image, image]}]),
            row("b", model="standard", messages=[{"role": "user", "content": [file]}]),
        ],
    )
    premium, standard = found.tiers
    assert (premium.images, premium.opaque, standard.images, standard.opaque) == (2, 0, 0, 1)
    assert 2 * 1_445 < premium.most_prompt_tokens < 2 * 1_445 + 300
    assert 1_445 < premium.likely_prompt_tokens < 1_445 + 100
    assert standard.most_prompt_tokens == 128_000
    text = " ".join(told(found).split())
    assert "2 images at premium: at most 1,445 tokens each, likely half of it." in text
    assert "1 row at standard with files, audio, stored content or tools of the provider's: at most a whole" in text
    assert "as long as the provider honours the limit on an answer's length and its price list" in text


def test_min_quality_moves_the_start(tmp_path: Path) -> None:
    """A row starts at the first tier that is good enough, and is an error where none is left."""
    found = estimated(tmp_path, [row("a"), row("b", model="standard")], rank=2)
    assert [tier.calls for tier in found.tiers] == [1, 0]
    assert found.codes == {"no_tier": 1}


def test_embeddings_have_no_answer_tokens(tmp_path: Path) -> None:
    """An embedding costs its prompt only."""
    line = orjson.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "hello"}})
    assert estimated(tmp_path, [line]).tiers[0].most_completion_tokens == 0


def test_budgets_are_held_against_what_is_needed(tmp_path: Path) -> None:
    """Each budget is told with what the job needs of it and whether that is enough, probably enough or not."""
    lines = [row(str(number), f"text {number}") for number in range(10)]
    budget = {
        "tokens": {"per_hour": 1500, "per_day": 1_000_000},
        "usd": {"per_day": 0.002},
        "tiers": {"premium": {"tokens": {"per_day": 300}}},
    }
    found = estimated(tmp_path, lines, budget, max_usd=1.0)
    text = " ".join(told(found).split())
    assert "the day's budget is 1,000,000 tokens: enough." in text
    assert "the hour's budget is 1,500 tokens: probably enough, not surely." in text
    assert "the day's budget is $0.002: not enough, the job would stop after about 38% of it." in text
    assert "the day's budget for premium is 300 tokens: not enough, other tiers would take the rest." in text
    assert "its own budget is $1.00: enough." in text


def test_the_hour_of_a_job_that_waits(tmp_path: Path) -> None:
    """An hour's budget may be less than a job needs, since the job can last longer than the hour; `wait` is told."""
    budget = {"tokens": {"per_hour": 10}, "on_exhausted": "wait"}
    text = " ".join(told(estimated(tmp_path, [row("a")], budget)).split())
    assert "not enough within one hour; a job that is that fast would wait for the next window." in text


def test_rows_over_the_budget_of_one_request_would_fail(tmp_path: Path) -> None:
    """A row that may use more than per_request is told apart: it would fail, whatever the other budgets."""
    found = estimated(tmp_path, [row("a"), row("b", "long" * 500)], {"tokens": {"per_request": 1000}})
    assert (found.calls, found.too_dear) == (1, 1)
    assert "they ask for more than one request may use" in told(found)


@pytest.mark.parametrize("width", [60, 120])
def test_what_is_read(tmp_path: Path, width: int) -> None:
    """A stranger reads that nothing was called, the counts, the first errors, the cost and how sure it all is."""
    lines = [row(str(number), f"text {number}") for number in range(1200)] + [b"broken"] * 15
    text = told(estimated(tmp_path, lines), width)
    words = " ".join(text.split())
    assert "nothing was called." in words
    assert "would be sent 1,200" in words
    assert "cannot be used 15 not JSON: 15" in words
    assert text.count("in.jsonl:12") == 10  # lines 1201 to 1210
    assert "and 5 more" in words
    assert "The job would likely cost $" in words
    assert "and at most $" in words
    assert "Not in it: calls that fail and are repeated" in words
    tables = [line for line in text.splitlines() if "in.jsonl" not in line]
    assert max(map(len, tables)) <= width


def test_a_damaged_input_is_told(tmp_path: Path) -> None:
    """What comes before the damage is counted, and the damage is named."""
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\x00\x00")
    config = Config.model_validate({"tiers": TIERS})
    encoder = Encoder(config.tiers, min_quality=0, deadline_s=600, job="dry-run", share=True)
    found = estimate(open_input(str(path)), encoder, config, resolve_prices(config), True, None)
    assert found.rows == 0
    assert "The input is damaged, a run would stop there" in told(found)


def test_tells_how_far_it_is(tmp_path: Path) -> None:
    """Whoever waits for a long count can be shown the rows read so far."""
    seen: list[int] = []
    estimated(tmp_path, [row(str(number)) for number in range(300)], on_rows=seen.append)
    assert seen == [256, 300]
