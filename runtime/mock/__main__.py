"""`python -m runtime.mock`: the mock endpoint without the rest of Raycade's command line."""

import argparse
import sys

from runtime.mock.load import builtin_names
from runtime.mock.main import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.mock", description="A mock OpenAI endpoint.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 chooses a free one")
    parser.add_argument("--scenario", default="ok", help=f"a YAML file, or one of: {', '.join(builtin_names())}")
    parser.add_argument("--latency", type=float, help="seconds; overrides the scenario's")
    parser.add_argument("--seed", type=int, help="overrides the scenario's")
    parser.add_argument("--quiet", action="store_true", help="print nothing when it listens")
    parser.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    return run(
        options.host,
        options.port,
        options.scenario,
        options.latency,
        options.seed,
        options.quiet,
        options.until_stdin_closes,
    )


if __name__ == "__main__":
    sys.exit(main())
