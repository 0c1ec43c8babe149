"""The digest table: a dict in its behaviour, a fraction of one in memory."""

import hashlib
import random

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


def test_takes_less_than_50_bytes_an_entry() -> None:
    """The memory for one entry, spare room included, stays under 50 bytes at every size that matters."""
    table, chance = DigestTable(), random.Random(2)
    for number in range(60_000):
        table.put(chance.randbytes(16), number)
        if number > 20_000 and number % 1000 == 0:
            assert table.memory_bytes / len(table) < 50


def test_longer_digests_count_by_their_first_16_bytes() -> None:
    """A SHA-256 coalescing key can be used as it is."""
    table, key = DigestTable(), hashlib.sha256(b"body").digest()
    table.put(key, 7)
    assert table.get(key[:16]) == 7


def test_digest_of_tells_names_apart() -> None:
    """A custom_id's digest has 16 bytes, is the same every time, and differs for another name."""
    assert len(digest_of("a")) == 16
    assert digest_of("ä") == digest_of("ä") != digest_of("a")
