"""Who is waited for at the end of a job: those who scrape regularly, until they have come, and not for long."""

from actors.observer.scrapers import Scrapers


def regular(every_s: float, name: str = "Prometheus", start: float = 100.0) -> Scrapers:
    scrapers = Scrapers()
    for number in range(4):
        scrapers.scraped(name, start + number * every_s)
    return scrapers


def test_a_regular_scraper_is_waited_for_until_it_comes() -> None:
    scrapers = regular(10.0)
    due = scrapers.due(133.0, 20.0)
    assert due == {"Prometheus": 130.0 + 12.0 + 0.5}
    assert scrapers.waits(due, 133.0, 135.0) == 7.5
    scrapers.scraped("Prometheus", 140.0)
    assert scrapers.waits(due, 133.0, 140.0) == 0.0


def test_who_never_comes_back_is_given_up() -> None:
    scrapers = regular(10.0)
    assert scrapers.waits(scrapers.due(133.0, 20.0), 133.0, 143.0) == 0.0
    assert scrapers.due(200.0, 20.0) == {}


def test_who_came_once_or_comes_too_late_is_not_waited_for() -> None:
    scrapers = Scrapers()
    scrapers.scraped("curl", 100.0)
    assert scrapers.due(101.0, 20.0) == {}
    assert regular(60.0).due(285.0, 20.0) == {}


def test_each_scraper_has_its_own_pace() -> None:
    scrapers = regular(10.0)
    for number in range(30):
        scrapers.scraped("a browser", 130.0 + number * 0.1)
    due = scrapers.due(133.0, 20.0)
    assert due.keys() == {"Prometheus", "a browser"}
    assert scrapers.waits(due, 133.0, 134.0) == 8.5


def test_after_our_own_absence_a_scraper_is_regular_still() -> None:
    """A scraper that could not reach us for a while will try again, and its pace is known from the file."""
    scrapers = Scrapers()
    scrapers.load(regular(1.0).plain())
    assert scrapers.due(110.0, 20.0) == {}
    assert scrapers.due(110.0, 20.0, open_since=109.5) == {"Prometheus": 109.5 + 1.2 + 0.5}


def test_any_number_of_names_takes_bounded_memory() -> None:
    scrapers = regular(10.0)
    due = scrapers.due(133.0, 20.0)
    for number in range(1000):
        scrapers.scraped(f"agent-{number}", 134.0)
    assert len(scrapers.plain()) == 16
    assert scrapers.waits(due, 133.0, 134.0) == 0.0
