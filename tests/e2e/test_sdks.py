"""The gateway through the clients that people build on, unchanged, each from its own published package.

Each has an environment of its own in build/peers, by the exact versions in tests/peers/*.txt, since their demands contradict
each other and ours; `make sdks` sets them all up and runs this. Without them these tests are skipped and say so;
RAYCADE_TEST_SDKS names those that must be there (`all`, or names with commas).
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.mock.process import MockProcess
from tests.e2e.gateways import GatewayProcess
from tests.e2e.jobs import ROOT

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
CONDUCT: dict[str, Any] = {"latency": 0.01, "tokens": 12, "tokens_per_s": 400}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with MockProcess({"tiers": {"steady": CONDUCT}}) as mock:
        # The mock makes what a schema asks for, so the schema may go to it as it is.
        tier = {"name": "steady", "base_url": mock.tier_url("steady"), "structured": "native"}
        with GatewayProcess(tmp_path_factory.mktemp("sdks"), [tier], budget={"usd": {"per_day": 10}}) as process:
            yield process


def ask(sdk: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the program tests/peers/ask_SDK.py heard."""
    python = ROOT / "build" / "peers" / f"sdk-{sdk}" / "bin" / "python"
    if not python.exists():
        demanded = os.environ.get("RAYCADE_TEST_SDKS", "").split(",")
        assert not {"all", sdk}.intersection(demanded), f"{sdk} is demanded and not set up"
        pytest.skip(f"{sdk} is not set up: `make sdks` does it")
    gateway: GatewayProcess = request.getfixturevalue("gateway")
    program = Path(__file__).parents[1] / "peers" / f"ask_{sdk.replace('-', '_')}.py"
    # Nothing of ours is on its path, no proxy stands between, and nothing is told to anybody.
    away = ("PYTHONPATH", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    environ = {name: value for name, value in os.environ.items() if name not in away}
    environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "wrong"}
    done = subprocess.run(
        [python, "-P", program, gateway.url, "any"],
        input=json.dumps(WEATHER),
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    heard: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return heard


def is_weather(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value["city"], str) and isinstance(value["degrees"], int)


def test_litellm(request: pytest.FixtureRequest) -> None:
    """Plain, streamed, and a tool call with its arguments."""
    heard = ask("litellm", request)
    assert heard["plain"].startswith("echo ")
    assert heard["stream"] == heard["plain"]
    assert heard["tool"][0] == "weather"
    assert is_weather(heard["tool"][1])
    assert heard["tokens"] == 12


def test_instructor(request: pytest.FixtureRequest) -> None:
    """Validated objects by a tool, by a schema, and in parts as they come."""
    objects = ask("instructor", request)["objects"]
    assert len(objects) == 3
    assert all(map(is_weather, objects))


def test_langchain(request: pytest.FixtureRequest) -> None:
    """ChatOpenAI: plain, streamed, a bound tool, structured output."""
    heard = ask("langchain", request)
    assert heard["plain"].startswith("echo ")
    assert heard["stream"] == heard["plain"]
    assert heard["tool"][0] == "Weather"
    assert is_weather(heard["tool"][1])
    assert is_weather(heard["objects"][0])


def test_pydantic_ai(request: pytest.FixtureRequest) -> None:
    """An agent's text, its stream, and its validated output."""
    heard = ask("pydantic-ai", request)
    assert heard["plain"].startswith("echo ")
    assert heard["stream"] == heard["plain"]
    assert is_weather(heard["objects"][0])
