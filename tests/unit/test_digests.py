"""The digest table: a dict in its behaviour, a fraction of one in memory."""

import hashlib
import random
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batch.digests import DigestTable, digest_of

# Few different digests, many with equal halves or equal low bits, so that probes collide.
DIGESTS = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 40).map(lambda n: bytes([n % 4]) + bytes(7) + bytes([n // 4]) + bytes(7)),
)


@given(st.lists(st.tuples(st.sampled_from(["put", "setdefault"]), DIGESTS, st.integers(0, 2**63)), max_size=200))
def test_behaves_like_a_dict(steps: list[tuple[str, bytes, int]]) -> None:
    """Whatever is put, in whatever order and however often, the table answers as a dict would."""
    table, model = DigestTable(), dict[bytes, int]()
    for verb, digest, value in steps:
        if verb == "put":
            table.put(digest, value)
            model[digest] = value
        else:
            assert table.setdefault(digest, value) == model.setdefault(digest, value)
        assert len(table) == len(model)
    for digest, value in model.items():
        assert table.get(digest) == value
        assert digest in table
    assert table.get(b"\xff" * 15 + b"\xfe") == model.get(b"\xff" * 15 + b"\xfe")


def test_keeps_every_entry_while_it_grows() -> None:
    """50,000 entries are all found after the many times the shards have grown, and none that was not put."""
    table, chance = DigestTable(), random.Random(1)
    digests = [chance.randbytes(16) for _ in range(50_000)]
    for number, digest in enumerate(digests):
        assert table.setdefault(digest, number) == number
    assert [table.get(digest) for digest in digests] == list(range(50_000))
    assert not any(chance.randbytes(16) in table for _ in range(1000))


def filled(table: DigestTable, count: int) -> list[bytes]:
    """The digests that were put, each with its number."""
    chance = random.Random(2)
    digests = [chance.randbytes(16) for _ in range(count)]
    for number, digest in enumerate(digests):
        table.put(digest, number)
    return digests


def test_a_large_table_lies_in_a_file_that_has_no_name(tmp_path: Path) -> None:
    """150,000 entries are all found; none of them is in memory for good, and nothing is left behind in the folder."""
    table = DigestTable(tmp_path)
    digests = filled(table, 150_000)
    assert [table.get(digest) for digest in digests] == list(range(150_000))
    assert table.memory_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_small_table_needs_no_file(tmp_path: Path) -> None:
    """10,000 entries ask nothing of the folder: it is not even there."""
    table = DigestTable(tmp_path / "nowhere")
    filled(table, 10_000)
    assert 0 < table.memory_bytes / len(table) < 100


@pytest.mark.parametrize("most_mb", [1, 9, 12])
def test_goes_on_in_memory_when_the_disk_has_no_room(tmp_path: Path, most_mb: int) -> None:
    """A file may not be made, or not grow any more: every entry is kept all the same."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_mb << 20, before[1]))
    try:
        table = DigestTable(tmp_path)
        digests = filled(table, 300_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [table.get(digest) for digest in digests] == list(range(300_000))
    assert table.memory_bytes > 0


def test_a_folder_that_is_not_there_keeps_the_table_in_memory(tmp_path: Path) -> None:
    """Whoever removes the folder under a running job costs it memory, not rows."""
    table = DigestTable(tmp_path / "nowhere")
    digests = filled(table, 150_000)
    assert [table.get(digest) for digest in digests] == list(range(150_000))
    assert table.memory_bytes > 0


def test_longer_digests_count_by_their_first_16_bytes() -> None:
    """A SHA-256 coalescing key can be used as it is."""
    table, key = DigestTable(), hashlib.sha256(b"body").digest()
    table.put(key, 7)
    assert table.get(key[:16]) == 7


def test_digest_of_tells_names_apart() -> None:
    """A custom_id's digest has 16 bytes, is the same every time, and differs for another name."""
    assert len(digest_of("a")) == 16
    assert digest_of("ä") == digest_of("ä") != digest_of("a")
