"""An outage that somebody has to put right: one call asks, after pauses that double."""

from actors.tier.outage import LONGEST_S, Outage


def test_one_call_asks_after_each_pause_and_the_pauses_double_to_a_cap() -> None:
    """Refusals of calls that were under way together make one pause."""
    now, pauses = 0.0, []
    outage = Outage("not_found", 20.0, 0.0)
    for _ in range(7):
        for _ in range(3):
            outage.refused("no such model", now)
        pauses.append(outage.until - now)
        assert not outage.probe(outage.until - 0.01, 5.0)
        now = outage.until
        assert outage.probe(now, 5.0)
        assert not outage.probe(now, 5.0), "the others wait for what it finds out"
    assert pauses == [20.0, 40.0, 80.0, 160.0, LONGEST_S, LONGEST_S, LONGEST_S]


def test_a_probe_that_is_lost_is_followed_by_another_after_its_lease() -> None:
    """Nothing can wedge it."""
    outage = Outage("auth", 600.0, 0.0)
    outage.refused("wrong key", 0.0)
    assert outage.until == 600.0, "a longer first pause of the user's own is kept"
    assert outage.probe(600.0, 35.0)
    assert not outage.probe(634.9, 35.0)
    assert outage.probe(635.0, 35.0)
