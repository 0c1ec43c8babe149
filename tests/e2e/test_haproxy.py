"""HAProxy as Ray Serve sets it up, and what it says where no replica can."""

import http.client
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from runtime.gateway.haproxy import haproxy_script

FROM_SERVE = (
    "errorfile 502 ",
    "errorfile 503 ",
    "    default_backend default_backend\n",
    "    bind :{{ config.metrics_port }}\n",
    "bind *:{{ config.stats_port }}\n",
    "http-request return status 404 content-type text/plain lf-string \"Path '%[path]' not found. Ping http",
)
SETUP = """global
    maxconn 100
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 1s
    retries 0
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend nobody if {{ path_beg /nobody }}
    use_backend proxy if {{ path_beg /proxy }}
    default_backend default_backend
frontend prometheus
    bind :{port_of_metrics}
listen stats
  bind *:{port_of_stats}
  stats enable
  stats uri /stats
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found. Ping http://.../-/routes"
backend nobody
    server gone 127.0.0.1:1
backend proxy
    server serves 127.0.0.1:{proxy}
"""


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Serve's own proxy, which knows no application; and an application that has its own word for it."""

    def do_GET(self) -> None:
        kind, body = ("application/json", b'{"error":{}}') if "ours" in self.path else ("text/plain", b"not found")
        self.send_response(404)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    port, metrics, stats = _free_port(), _free_port(), _free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        given = {"folder": tmp_path, "port": port, "proxy": proxy.server_port}
        text = SETUP.format(**given, port_of_metrics=metrics, port_of_stats=stats)
        (tmp_path / "haproxy.cfg").write_text(text)
        command = [haproxy_script(str(tmp_path)), "-f", str(tmp_path / "haproxy.cfg")]
        subprocess.run([*command, "-c"], check=True, timeout=30, capture_output=True)  # Serve checks first, then starts
        with subprocess.Popen([*command, "-db"]) as process:
            try:
                yield port
            finally:
                process.terminate()
                proxy.shutdown()


def get(port: int, path: str) -> tuple[int, str | None, str]:
    """Status, Retry-After and the error's code."""
    until = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.headers["retry-after"], orjson.loads(reply.read())["error"].get("code")
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.05)
        finally:
            connection.close()


def test_what_is_mended_is_what_serve_writes() -> None:
    """A Serve that says it otherwise would have its own way again."""
    assert all(line in HAPROXY_CONFIG_TEMPLATE for line in FROM_SERVE)


def test_where_no_replica_can_answer_clients_are_told_to_come_again(port: int) -> None:
    """In OpenAI's shape. What the application itself says is left alone."""
    assert get(port, "/v1/models") == (503, "1", "not_serving")
    assert get(port, "/proxy/v1/models") == (503, "1", "not_serving")
    assert get(port, "/nobody/v1/models") == (503, "1", "restarting")
    assert get(port, "/proxy/ours") == (404, None, None)


def test_statistics_are_for_this_machine(port: int, tmp_path: Path) -> None:
    """Serve would show them on every address that the machine has, though the gateway listens on loopback."""
    binds = [line.split()[1] for line in (tmp_path / "haproxy.cfg").read_text().splitlines() if "bind " in line]
    assert len(binds) == 3
    assert all(bind.startswith("127.0.0.1:") for bind in binds)
