"""The gateway's keys: what the file may hold, and who is let in."""

import hashlib
from pathlib import Path

import pytest

from actors.errors import ConfigError
from runtime.gateway.keyfile import LOOK_EVERY_S, KeyFile
from runtime.gateway.keys import PREFIX, hash_of, new_key, read_keys

TIERS = ["best", "cheap"]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_lines_of_names_and_hashes(tmp_path: Path) -> None:
    """The plain form: comments and blank lines are skipped, two hashes of one name are one caller."""
    file = tmp_path / "keys"
    file.write_text(
        f"# ours\nteam-a sha256:{digest('one')}  # laptop\n\nteam-b {digest('two')}\nteam-a {digest('three')}"
    )
    ring = read_keys(str(file), TIERS)
    assert [key.name for key in ring.keys] == ["team-a", "team-b"]
    assert {name: found.name for name in ("one", "two", "three") if (found := ring.find(name))} == {
        "one": "team-a",
        "two": "team-b",
        "three": "team-a",
    }
    assert ring.find("four") is None
    assert ring.find("") is None
    assert ring.find(digest("one")) is None, "a hash is no key"


def test_yaml_with_limits(tmp_path: Path) -> None:
    """The long form says what a key may use."""
    file = tmp_path / "keys.yaml"
    file.write_text(
        f"keys:\n  - name: team-a\n    sha256: [{digest('one')}, 'sha256:{digest('two')}']\n    tiers: [cheap]\n"
        "    tokens: {per_day: 1000}\n    requests_per_minute: 60\n    streams: 2\n"
    )
    ring = read_keys(str(file), TIERS)
    one, two = ring.find("one"), ring.find("two")
    assert one is not None
    assert one is two
    assert (one.tiers, one.budget.tokens.per_day, one.requests_per_minute, one.streams) == (("cheap",), 1000, 60, 2)


def test_who_may_read_what_concerns_all_keys(tmp_path: Path) -> None:
    """Marked so in either form, as the command writes it; nobody else."""
    lines, long = tmp_path / "keys", tmp_path / "keys.yaml"
    lines.write_text(f"ops sha256:{digest('one')} admin\nteam {digest('two')}  # admin\n")
    long.write_text(
        f"keys:\n  - {{name: ops, sha256: {digest('one')}, admin: true}}\n  - {{name: team, sha256: {digest('two')}}}\n"
    )
    for file in (lines, long):
        ring = read_keys(str(file), TIERS)
        assert [(key.name, key.admin) for key in ring.keys] == [("ops", True), ("team", False)]


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("keys", "team-a sk-proj-abcdefghij0123456789", r"keys:1: expected NAME sha256:HASH"),
        ("keys", f"team-a {digest('x')} boss", r"keys:1: expected NAME sha256:HASH"),
        ("keys", f"fine {digest('x')}\nsk-proj-abcdefghij0123456789\n", r"keys:2: expected NAME sha256:HASH"),
        ("keys", f"a {digest('x')}\nb {digest('x')}", r"keys:2: the same key as that of a"),
        (
            "keys.yaml",
            "keys:\n  - name: a\n    sha256: sk-proj-abcdefghij0123456789\n",
            r"keys.yaml:3: .*64 hexadecimal",
        ),
        ("keys.yaml", f"keys:\n  - name: a\n    sha256: {digest('x')}\n    tiers: [bset]\n", r":4: .*no tier 'bset'"),
        (
            "keys.yaml",
            f"keys:\n  - name: a\n    sha256: {digest('x')}\n    limit: 3\n",
            r"keys.yaml:4: keys\[0\].limit",
        ),
        ("keys.yaml", "keys:\n" + f"  - {{name: a, sha256: {digest('x')}}}\n" * 2, r":3: .*two keys are called 'a'"),
    ],
)
def test_what_cannot_be_is_one_line_that_shows_no_key(tmp_path: Path, name: str, text: str, wrong: str) -> None:
    """File and line, what was expected; what stood there may have been a key."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=wrong) as refused:
        read_keys(str(file), TIERS)
    assert "abcdefghij0123456789" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_new_keys_are_long_and_never_the_same() -> None:
    """256 bits, so that a plain hash of them cannot be searched."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith(PREFIX) and len(key) >= 43 + len(PREFIX) for key in made)
    assert len({hash_of(key) for key in made}) == 100


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new key works within seconds; a slip of the pen locks nobody out, and is told once."""
    now = [100.0]
    monkeypatch.setattr("runtime.gateway.keyfile.time.monotonic", lambda: now[0])
    file = tmp_path / "keys"
    file.write_text(f"a {digest('one')}\n")
    keys = KeyFile(str(file), TIERS)

    def write(text: str) -> None:
        file.write_text(text)
        now[0] += LOOK_EVERY_S

    write(f"a {digest('one')}\nb {digest('two')}\n")
    assert keys.ring().find("two") is not None
    for _ in range(2):
        write("what is this\n")
        assert keys.ring().find("two") is not None
    assert capsys.readouterr().err.count("keys:1: expected NAME") == 1
    write(f"b {digest('two')}\n")
    assert keys.ring().find("one") is None
    file.unlink()
    now[0] += LOOK_EVERY_S
    assert keys.ring().find("two") is not None
