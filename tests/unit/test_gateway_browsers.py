"""What browsers may do through the gateway."""

from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from runtime.gateway.browsers import for_browsers

OURS, THEIRS = "https://chat.example.com", "https://evil.example.net"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-raycade-tier", b"main")]})
    await send({"type": "http.response.body", "body": b"{}"})


def client(origins: list[str], *, keyed: bool) -> TestClient:
    return TestClient(for_browsers(app, origins, keyed=keyed))


def preflight(browser: TestClient, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return browser.options("/v1/chat/completions", headers=headers)


def test_a_page_that_is_named_may_call_and_read_what_is_told() -> None:
    """With a key, with any header, and without cookies."""
    browser = client([OURS], keyed=True)
    told = preflight(browser, OURS)
    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] == OURS
    assert "authorization" in told.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in told.headers
    answer = browser.post("/v1/chat/completions", headers={"Origin": OURS})
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "x-raycade-tier" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origins", [[], [OURS]])
def test_any_other_page_may_not(origins: list[str]) -> None:
    """Its preflight brings no permission, and neither does an answer."""
    browser = client(origins, keyed=True)
    assert "access-control-allow-origin" not in preflight(browser, THEIRS).headers
    answer = browser.post("/v1/chat/completions", headers={"Origin": THEIRS})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [THEIRS, "null", "http://localhost:8000", OURS.upper()])
def test_without_keys_no_foreign_page_spends_our_money(origin: str) -> None:
    """A plain POST needs no preflight, so it is refused itself; programs, which send no Origin, are served."""
    browser = client([OURS], keyed=False)
    refused = browser.post("/v1/chat/completions", headers={"Origin": origin, "Content-Type": "text/plain"})
    assert refused.status_code == 403
    assert orjson.loads(refused.content)["error"]["code"] == "foreign_origin"
    assert browser.post("/v1/chat/completions").status_code == 200
    assert browser.post("/v1/chat/completions", headers={"Origin": OURS}).status_code == 200
