"""benchmarks/data/tickets.jsonl: what the demo's README says of it, and that it is what its generator makes."""

import json

from benchmarks.data.make_tickets import EQUAL, FILE, LONGEST, ROWS, SHORTEST, lines


def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in lines()]


def test_file_is_the_generators_output() -> None:
    """The file under version control can be made again, byte for byte."""
    assert FILE.read_bytes() == "".join(f"{line}\n" for line in lines()).encode()


def test_rows_are_batch_rows() -> None:
    """Every row has its own id, a url, and a bound on its answer."""
    made = rows()
    assert [row["custom_id"] for row in made] == [f"ticket-{number:04d}" for number in range(1, ROWS + 1)]
    assert {(row["method"], row["url"]) for row in made} == {("POST", "/v1/chat/completions")}
    assert all(row["body"]["max_tokens"] > 0 for row in made)


def test_equal_rows() -> None:
    """The number of rows that share another row's answer is known, so that the demo can be checked."""
    bodies = {json.dumps(row["body"], sort_keys=True) for row in rows()}
    assert ROWS - len(bodies) == EQUAL
    assert 0.06 <= EQUAL / ROWS <= 0.1


def test_texts_are_varied() -> None:
    """Lengths within bounds, both ends used, and text that is not ASCII."""
    texts = [row["body"]["messages"][1]["content"] for row in rows()]
    lengths = sorted(map(len, texts))
    assert SHORTEST <= lengths[0] < 100
    assert 900 < lengths[-1] <= LONGEST
    assert sum(not text.isascii() for text in texts) > ROWS / 4
    assert not any("{" in text for text in texts)
