"""A page in headless Chromium that asks a gateway and tells what it got. Debian's `chromium`; nothing is fetched."""

import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.e2e.chromium import running

__all__ = ["Page", "serving_page"]

TOLD_S = 60.0
HTML = b"""<!doctype html><meta charset="utf-8"><title>a page</title><script>
(async () => {
  const told = {reads: 0, text: "", ended: false};
  try {
    const ask = await (await fetch("/ask")).json();
    const reply = await fetch(ask.url, {method: "POST", headers: ask.headers, body: JSON.stringify(ask.body)});
    told.status = reply.status;
    told.tier = reply.headers.get("x-raycade-tier");
    const reader = reply.body.getReader(), decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      told.reads += 1;
      const lines = (rest + decoder.decode(value, {stream: true})).split("\\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") told.ended = true;
        else if (line.startsWith("data: ")) {
          const choice = JSON.parse(line.slice(6)).choices[0];
          told.text += choice ? choice.delta.content || "" : "";
        }
      }
    }
  } catch (error) { told.error = String(error); }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


class Page:
    """Serves the page at http://127.0.0.1:PORT and, which is another origin to a browser, at http://localhost:PORT."""

    def __init__(self) -> None:
        self.ask: dict[str, Any] = {}
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(HTML if self.path == "/" else json.dumps(page.ask).encode())

            def do_POST(self) -> None:
                page._told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._reply(b"{}")

            def _reply(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if body is HTML else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def origin(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}"

    def opened(self, ask: dict[str, Any], host: str = "127.0.0.1") -> dict[str, Any]:
        """What the page told after it was opened and had asked. Skips where there is no Chromium and none is demanded."""
        self.ask = ask
        with running(self.origin(host)):
            return self._told.get(timeout=TOLD_S)


@contextlib.contextmanager
def serving_page() -> Iterator[Page]:
    page = Page()
    threading.Thread(target=page.server.serve_forever, daemon=True).start()
    try:
        yield page
    finally:
        page.server.shutdown()
        page.server.server_close()
