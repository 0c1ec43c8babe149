"""An outage that somebody has to put right: once a pause, one call asks."""

from actors.tier.outage import Outage


def test_one_call_asks_after_each_pause() -> None:
    """Refusals of calls that were under way together make one pause."""
    outage, now = Outage("not_found", 20.0, 0.0), 0.0
    for _ in range(7):
        for late_s in (0.0, 0.5, 3.0):
            outage.refused("no such model", now + late_s)
        assert outage.until == now + 20.0
        assert not outage.probe(outage.until - 0.01, 5.0)
        now = outage.until
        assert outage.probe(now, 5.0)
        assert not outage.probe(now, 5.0), "the others wait for what it finds out"


def test_a_probe_that_is_lost_is_followed_by_another_after_its_lease() -> None:
    """Nothing can wedge it."""
    outage = Outage("auth", 600.0, 0.0)
    outage.refused("wrong key", 0.0)
    assert outage.probe(600.0, 35.0)
    assert not outage.probe(634.9, 35.0)
    assert outage.probe(635.0, 35.0)
