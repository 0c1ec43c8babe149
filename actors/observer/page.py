"""The page that shows how a runtime fares, and what a browser may do with it: nothing but what stands in it.

It has no data of its own, so anyone may load it; what it shows comes from `/ui/live`, which asks for what `/status` asks for.
"""

import base64
import hashlib
from pathlib import Path

__all__ = ["HEADERS", "KEYED_PAGE", "LIVE_S", "PAGE"]

LIVE_S = 1.0
"""So often it is told how things are."""
PAGE = Path(__file__).with_name("page.html").read_bytes()
KEYED_PAGE = PAGE.replace(b"<body>", b"<body data-keyed>")
"""Where a key is needed: it asks for one at once, instead of being refused first."""


def _hash(tag: bytes) -> str:
    inside = PAGE.split(b"<" + tag + b">")[1].split(b"</" + tag + b">")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; connect-src 'self'; script-src {_hash(b'script')}; "
    f"style-src {_hash(b'style')}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
