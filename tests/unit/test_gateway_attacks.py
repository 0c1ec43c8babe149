"""How gateways have been broken, each way tried on this one: the application itself, in front of a router that remembers.

Beside these: multipart bombs in test_gateway_multipart.py, fields that choose an address in test_gateway_asks.py, redirects
and secrets of endpoints in tests/e2e/test_transports.py.
"""

import ast
import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import runtime.gateway
from actors.messages import Amount, Failure, Request, Result, Usage
from actors.settings import TierSettings
from runtime.gateway.app import GatewayApp
from runtime.gateway.asks import CONTENT, OPERATORS_OWN, Asks
from runtime.gateway.keys import Key, KeyRing, hash_of
from runtime.gateway.limits import Gate

ROOT = Path(__file__).parents[2]
KEY, SECRET = "rk-a-key-of-somebody", "sk-a-key-of-the-operator"
TIERS = [TierSettings.model_validate({"name": "best", "model": "m-best", "base_url": "http://upstream.internal"})]
RING = KeyRing({hash_of(KEY): Key("somebody", admin=True)})
CHAT = "/v1/chat/completions"
PLAIN: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
TEMPLATES = ["{{7*7}}", "{r.api_key}", "${jndi:ldap://x/y}", "__import__('os').system('id')", "%(api_key)s", "#{7*7}"]


class RemembersAll:
    """A router; `trouble` is raised instead of an answer."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.trouble: Exception | None = None

    async def run(self, request: Request) -> Result | Failure:
        self.asked.append(request)
        if self.trouble is not None:
            raise self.trouble
        return Result(b'{"choices":[]}', 200, "best", (), Usage(1, 1), Amount())

    async def stream(self, request: Request, listener: object) -> Result | Failure:
        return await self.run(request)


class Front:
    """The application. `send` is one request; `read` the bytes of its body that were taken."""

    def __init__(self, keys: Callable[[], KeyRing | None] = lambda: RING) -> None:
        self.router = RemembersAll()
        asks = Asks(TIERS, min_quality="basic", deadline_s=60.0, share=True)
        self.app = GatewayApp(self._open, asks, keys, Gate(100), 10_000)
        self.read = 0

    async def _open(self) -> RemembersAll:
        return self.router

    async def send(
        self, method: str, path: str, body: object = None, key: str | None = KEY, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body. A body that is an iterator of bytes comes in pieces and without a length."""
        pieces = body if isinstance(body, Iterator) else iter([orjson.dumps(body)])
        sent: list[Any] = []
        whole = False

        async def receive() -> dict[str, Any]:
            nonlocal whole
            if whole:
                await asyncio.Event().wait()  # the client stays
            piece = next(pieces, b"")
            whole = not piece
            self.read += len(piece)
            return {"type": "http.request", "body": piece, "more_body": bool(piece)}

        async def send(message: Any) -> None:
            sent.append(message)

        given = {**headers, **({} if key is None else {"authorization": f"Bearer {key}"})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()],
            "scheme": "http",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
        }
        try:
            await self.app(scope, receive, send)
        except Exception:  # Starlette hands a defect on to the server's log once it has answered
            assert sent
        told = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], told


@pytest.fixture
def front() -> Front:
    return Front()


@pytest.mark.parametrize("text", TEMPLATES)
async def test_nothing_in_a_request_is_a_template(front: Front, text: str) -> None:
    """It goes upstream letter by letter, and an error that speaks of it shows it as it came."""
    body = {**PLAIN, "messages": [{"role": text, "content": text}], text: text}
    assert (await front.send("POST", CHAT, body))[0] == 200
    assert orjson.loads(front.router.asked[0].body) == {name: body[name] for name in ("messages", text)}
    status, told = await front.send("POST", CHAT, {**PLAIN, "model": text})
    assert status == 404
    assert text in orjson.loads(told)["error"]["message"]


@pytest.mark.parametrize("path", [f"/v1{path}" for path in CONTENT])
async def test_no_body_names_an_address_or_a_key(front: Front, path: str) -> None:
    """On no path, streamed or not."""
    content: dict[str, object] = {"messages": [], "prompt": "a", "input": "a"}
    for field in OPERATORS_OWN:
        for stream in (False, True):
            status, told = await front.send("POST", path, {**content, "stream": stream, field: "http://evil"})
            assert (status, orjson.loads(told)["error"]["param"]) == (400, field)
    assert front.router.asked == []


@pytest.mark.parametrize(
    "key", ["' OR '1'='1", '" OR 1=1 --', "*", "%", "null", "None", "rk-", KEY.upper(), KEY + "x", ""]
)
async def test_a_key_is_compared_and_nothing_else_is_done_with_it(front: Front, key: str) -> None:
    """Neither a query nor a pattern, and none is no key."""
    assert (await front.send("POST", CHAT, PLAIN, key))[0] == 401
    assert (await front.send("GET", "/v1/models", None, key))[0] == 401
    assert front.router.asked == []


async def test_no_header_and_no_spelling_makes_somebody_of_nobody(front: Front) -> None:
    """Whose address, host or path a proxy in between may claim: the key is asked for on the path as it is routed."""
    claims = {"host": "localhost", "x_forwarded_for": "127.0.0.1", "x_real_ip": "127.0.0.1", "x_api_key": KEY}
    claims |= {
        "x_original_url": "/healthz",
        "x_rewrite_url": "/healthz",
        "x_http_method_override": "GET",
        "cookie": KEY,
    }
    for path in (CHAT, "/v1/models", "//v1/models", "/v1/models/", "/healthz/../v1/models", "/V1/models", "/healthz/x"):
        for method in ("GET", "POST"):
            assert (await front.send(method, path, PLAIN, None, **claims))[0] in (401, 404, 405), path
    assert front.router.asked == []


async def test_a_key_check_that_fails_lets_nobody_in() -> None:
    """Neither one that breaks nor one that knows no keys falls back to somebody."""

    def breaks() -> KeyRing | None:
        raise OSError("the keys are gone")

    for keys, expected in ((breaks, 500), (lambda: KeyRing({}), 401)):
        front = Front(keys)
        status, told = await front.send("POST", CHAT, PLAIN)
        assert (status, front.router.asked) == (expected, [])
        assert b"the keys are gone" not in told


@pytest.mark.parametrize(
    "path",
    [
        "/config/update",
        "/config/yaml",
        "/v1/config",
        "/model/new",
        "/key/generate",
        "/v1/keys",
        "/mcp/test/connection",
        "/v1/mcp/tools/call",
        "/prompts/test",
        "/guardrails/test_custom_code",
        "/shell",
        "/openapi.json",
        "/metrics",
        "/raycade.yaml",
    ],
)
async def test_nothing_is_configured_or_started_over_http(front: Front, path: str) -> None:
    """Not even by a key that is marked admin."""
    body = {"command": "id", "base_url": "http://evil", "model_list": [], "url": "file:///etc/passwd"}
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert (await front.send(method, path, body))[0] in (404, 405)


def test_the_gateway_runs_no_text_and_no_command() -> None:
    """Whatever a request holds, there is nothing in these modules that could run it."""
    for file in Path(runtime.gateway.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            assert names.isdisjoint({"subprocess", "pickle", "marshal", "yaml", "jinja2"}), file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, file
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"system", "popen", "create_subprocess_exec", "create_subprocess_shell"}, file


async def test_a_body_is_bounded_while_it_is_read(front: Front) -> None:
    """One that does not tell its length is read up to the bound; one that is packed is not unpacked, nor read."""
    endless = (b"x" * 1000 for _ in range(1_000_000))
    assert (await front.send("POST", CHAT, endless))[0] == 413
    assert front.read <= 11_000
    front.read = 0
    for coding in ("gzip", "br", "deflate", "identity, gzip"):
        assert (await front.send("POST", CHAT, PLAIN, content_encoding=coding))[0] == 415
    assert (await front.send("POST", CHAT, PLAIN, content_length="99999999"))[0] == 413
    assert front.read == 0


async def test_no_answer_and_no_line_of_a_log_shows_a_key(
    front: Front, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a caller's, right or wrong, nor the operator's in what went wrong; health pages show nothing at all."""
    answers = [
        await front.send("POST", CHAT, PLAIN, key) for key in (KEY, "rk-wrong-key-of-somebody", f"{KEY}\u00e9", None)
    ]
    front.router.trouble = RuntimeError(f"Bearer {SECRET} was refused by http://upstream.internal")
    answers.append(await front.send("POST", CHAT, PLAIN))
    answers.append(await front.send("POST", CHAT, {**PLAIN, "stream": True}))
    answers += [await front.send("GET", path, None, None) for path in ("/healthz", "/readyz")]
    said = "".join((*capfd.readouterr(), caplog.text)) + repr(answers)
    for shown in (KEY, "rk-wrong-key", SECRET, "upstream.internal", "somebody"):
        assert shown not in said


def test_every_dependency_is_pinned() -> None:
    """A release that somebody smuggled in is not installed by itself."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
