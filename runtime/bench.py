"""`raycade bench`: starts the benchmarks of a checkout, which no installed package has, as a program of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.errors import ConfigError

__all__ = ["run_bench"]

ROOT = Path(__file__).resolve().parents[1]


def run_bench(scenarios: Sequence[str], quick: bool, out: str, peers: bool, root: Path = ROOT) -> int:
    """The exit code of `benchmarks.page`. Raises ConfigError where it is not there."""
    if not (root / "benchmarks" / "page.py").is_file():
        raise ConfigError(
            "the benchmarks are only in a checkout of the repository, not in an installed package: run it there"
        )
    command = [sys.executable, "-m", "benchmarks.page", *scenarios, "--out", out]
    command += [*(["--quick"] if quick else []), *([] if peers else ["--no-peers"])]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, env=env, check=False).returncode
