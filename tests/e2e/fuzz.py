"""The gateway under schemathesis, from its own OpenAPI page: `python -m tests.e2e.fuzz --seconds 600`.

Every operation with right, wrong and odd bodies, headers and parameters, and chains of them (upload, create, cancel, delete).
It fails for an answer that is a server error, of a status or shape that the page does not know, or that a wrong key gets.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from runtime.mock.process import MockProcess
from tests.e2e.gateways import GatewayProcess
from tests.e2e.jobs import descendants

__all__ = ["fuzz", "tracebacks"]

SETTINGS = Path(__file__).with_name("fuzz.toml")


def fuzz(root: str, key: str, seconds: int, folder: Path, examples: int = 100, seed: int = 1) -> str:
    """What schemathesis says of the gateway at `root`; empty when it found nothing."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(SETTINGS)),
        *("run", f"{root}/openapi.json", "--header", f"Authorization: Bearer {key}", "--no-color", "--no-shrink"),
        *("--max-time", str(seconds), "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 120, check=False)
    return "" if done.returncode == 0 else f"{done.stdout[-20_000:]}\n{done.stderr[-2000:]}"


def tracebacks(gateway: GatewayProcess) -> list[str]:
    """The end of every log of the gateway's replicas in which something was not foreseen."""
    assert gateway.process is not None
    commands = descendants(gateway.process.pid).values()
    folders = {found[1] for command in commands if (found := re.search(r"--log[-_]dir=(\S+)", command))}
    logs = [log.read_text(errors="replace") for folder in folders for log in Path(folder, "serve").glob("replica*.log")]
    assert logs, "a replica has a log"
    return [text[text.index("Traceback") :][:5000] for text in logs if "Traceback" in text]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, MockProcess({"tiers": {"one": {"tokens": 5}}}) as mock:
        folder = Path(name)
        with GatewayProcess(folder, [{"name": "one", "base_url": mock.tier_url("one")}]) as gateway:
            said = fuzz(gateway.root, "none", given.seconds, folder, 1000, given.seed)
            print(said or f"nothing found in {given.seconds} s")
            found = tracebacks(gateway)
            print("\n".join(found) or "no traceback")
    return int(bool(said or found))


if __name__ == "__main__":
    sys.exit(main())
