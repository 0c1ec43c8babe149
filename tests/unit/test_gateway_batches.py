"""What a batch may become, who is next, and what clients may ask of lists."""

from typing import Any

import pytest

from runtime.gateway.batch_rules import (
    Batch,
    Fault,
    carried_on,
    closing,
    counted,
    ended,
    failed,
    page,
    read_batch_ask,
    shown,
    started,
    told_to_cancel,
)
from runtime.gateway.errors import HttpError

ASK = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def batch(id: str = "batch_1", owner: str = "a") -> Batch:
    return Batch(id, owner, "/v1/embeddings", "file-1", "in.jsonl", "file-2", "file-3", 100, 100 + 86400)


def test_a_batch_from_beginning_to_end() -> None:
    """Each state leaves its time, and files are shown when they are there."""
    done = counted(started(batch(), 3, 101.5), 2, 1, "a budget")
    assert (shown(done)["status"], shown(done)["raycade"]) == ("in_progress", {"note": "a budget"})
    done = ended(closing(done, "completed", 102), True, False, 103)
    seen = shown(done)
    assert (seen["status"], seen["output_file_id"], seen["error_file_id"]) == ("completed", "file-2", None)
    assert (seen["in_progress_at"], seen["finalizing_at"], seen["completed_at"]) == (101, 102, 103)
    assert seen["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert "raycade" not in seen


def test_cancelling_is_said_once_or_twice_and_never_lost() -> None:
    """Whatever comes in between, what was told to cancel ends as cancelled; what has ended cannot be."""
    told = told_to_cancel(batch(), 101)
    assert told_to_cancel(told, 105) == told
    assert started(told, 3, 102).status == "cancelling"
    done = ended(closing(told, "completed", 103), True, True, 104)
    assert (done.status, done.cancelling_at, done.cancelled_at) == ("cancelled", 101, 104)
    assert told_to_cancel(done, 105) == done
    late = closing(started(batch(), 1, 101), "expired", 102)
    with pytest.raises(HttpError, match="finalizing") as refused:
        told_to_cancel(late, 103)
    assert refused.value.status == 409
    with pytest.raises(HttpError, match="'expired'"):
        told_to_cancel(ended(late, False, True, 104), 105)


def test_a_wrong_file_is_told_line_by_line() -> None:
    seen = shown(failed(batch(), [Fault("duplicate_custom_id", "twice", 7, "custom_id")], 101))
    assert (seen["status"], seen["failed_at"]) == ("failed", 101)
    assert seen["errors"]["data"] == [
        {"code": "duplicate_custom_id", "message": "twice", "line": 7, "param": "custom_id"}
    ]


def test_who_has_fewest_under_way_is_next() -> None:
    """One key with many batches does not keep the others waiting."""
    many = [batch(f"a{number}") for number in range(5)]
    waiting = [*many[1:], batch("b1", "b"), batch("c1", "c")]
    assert [one.id for one in carried_on(waiting, many[:1], 4)] == ["b1", "c1", "a1"]
    assert carried_on(waiting, many[:4], 4) == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"api_base": "http://evil"}, "api_base"),
    ],
)
def test_what_a_batch_cannot_be_made_of(wrong: dict[str, Any], field: str) -> None:
    assert read_batch_ask({**ASK, "metadata": {"a": "b"}}).metadata == {"a": "b"}
    with pytest.raises(HttpError) as refused:
        read_batch_ask({**ASK, **wrong})
    assert (refused.value.status, refused.value.param) == (400, field)


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "-1"}, {"limit": "²"}, {"order": "up"}])
def test_pages_that_cannot_be(query: dict[str, str]) -> None:
    assert page({"limit": "100", "order": "asc", "after": ""}, 100, 20) == (None, 100, False)
    with pytest.raises(HttpError):
        page(query, 100, 20)
