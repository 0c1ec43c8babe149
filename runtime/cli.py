"""The command line: `raycade batch | serve | up | down | keys | status | metrics | budget | prompts | mock | bench`. Options are read here, what they do is elsewhere.

Every error that a user can make ends in one line on stderr and exit code 2; a traceback is a defect of ours.
"""

import sys
from typing import Annotated

import typer

from actors.errors import ConfigError, RaycadeError
from runtime.prompts_cli import app as prompts
from runtime.telemetry.command import app as metrics

__all__ = ["app", "main"]

app = typer.Typer(
    help="Send any number of prompts to language-model APIs: nothing lost, nothing overspent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Send any number of prompts to language-model APIs: nothing lost, nothing overspent."""


@app.command()
def batch(
    input: Annotated[
        str, typer.Option("-i", "--input", help="JSONL (plain, .gz, .zst) or .parquet; a folder, a glob, a URL, or - .")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="JSONL of answers (or .gz, .zst, .parquet, a URL); DIR/: one a file.")
    ],
    config: Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")] = None,
    errors: Annotated[str | None, typer.Option(help="Failed rows. Default: OUT with .errors.jsonl.")] = None,
    min_quality: Annotated[str | None, typer.Option(help="basic, medium or high: never use a tier below.")] = None,
    prompt: Annotated[str | None, typer.Option(help="NAME or NAME@VERSION, for rows with variables.")] = None,
    schema: Annotated[str | None, typer.Option(help="module:Class or file.json that answers must satisfy.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="The most this job may cost.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="The most tokens this job may use.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    window: Annotated[int, typer.Option(min=1, help="Rows in flight.")] = 2000,
    dedupe: Annotated[bool, typer.Option("--dedupe/--no-dedupe", help="Equal rows share one call.")] = True,
    report: Annotated[str | None, typer.Option(help="Write an HTML report here.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: removes OUT, ERRORS and the journal.")] = False,
    redo: Annotated[str | None, typer.Option(help="prompt=NAME@V: do again the rows that this version made.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, estimate and check; call nothing.")] = False,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
    progress: Annotated[str, typer.Option(help="auto, bar, log or none.")] = "auto",
) -> None:
    """Run a file of requests through the cascade. Run it again to resume.

    Exit codes: 0 every row succeeded; 3 some rows failed; 4 stopped by a budget; 130 interrupted; 2 usage or
    configuration; 1 anything else. After 4, 130 and 1 the same command goes on where it stopped.
    """
    from runtime.batch.job import BatchOptions, run_job

    if min_quality is not None and min_quality not in ("basic", "medium", "high"):
        raise ConfigError(f"expected basic, medium or high, found {min_quality[:60]!r}", key="--min-quality")
    if progress not in ("auto", "bar", "log", "none"):
        raise ConfigError(f"expected auto, bar, log or none, found {progress[:60]!r}", key="--progress")
    options = BatchOptions(
        input,
        output,
        config,
        errors,
        min_quality,
        prompt,
        schema,
        max_usd,
        max_tokens,
        limit,
        window,
        dedupe,
        report,
        fresh,
        redo,
        dry_run,
        address,
        progress,
    )
    raise typer.Exit(run_job(options))


@app.command()
def serve(
    config: Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need gateway.keys_file.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
) -> None:
    """Serve the tiers behind one OpenAI-compatible address, until Ctrl-C or SIGTERM."""
    from runtime.serve import run_gateway

    raise typer.Exit(run_gateway(config, host, port, address))


@app.command()
def up(
    config: Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; default: a Ray of its own here.")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until Ctrl-C or SIGTERM.")] = False,
) -> None:
    """Start a runtime that stays: jobs, gateways and programs with the same configuration share its limits."""
    from runtime.up import run_up

    raise typer.Exit(run_up(config, address, foreground))


@app.command()
def down(
    config: Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster where it is up.")] = None,
) -> None:
    """End the runtime that `up` has started. Whoever uses it then loses it."""
    from runtime.up import run_down

    raise typer.Exit(run_down(config, address))


keys = typer.Typer(help="The gateway's keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Whose key it is; its budget is the scope key:NAME.")],
    config: Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may read /metrics too.")] = False,
) -> None:
    """Make a key, print it once, and add its hash to gateway.keys_file."""
    from runtime.keys import new

    raise typer.Exit(new(config, name, admin))


@app.command()
def mock(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    scenario: Annotated[str, typer.Option(help="A built-in name (ok, flaky, dead, hang, ...) or a YAML file.")] = "ok",
    latency: Annotated[float | None, typer.Option(min=0, help="Seconds before every answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the scenario's chances.")] = None,
) -> None:
    """Serve a mock OpenAI endpoint: for trying things out, tests and load benchmarks."""
    from runtime.mock.main import run

    raise typer.Exit(run(host, port, scenario, latency, seed))


app.add_typer(prompts, name="prompts")
app.add_typer(metrics, name="metrics")

budget = typer.Typer(help="The ledger of what was spent: look at it, set limits, stop, resume.", no_args_is_help=True)
app.add_typer(budget, name="budget")

ConfigOption = Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")]
SCOPES = "all, tier:NAME, key:NAME or job:NAME."


@budget.command("show")
def budget_show(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; dollars as micro-dollars.")] = False,
) -> None:
    """Draw what each scope has spent, reserved and left, and when its windows turn."""
    from runtime.budget import show

    raise typer.Exit(show(config, as_json))


@budget.command("set")
def budget_set(
    scope: Annotated[str, typer.Argument(help=SCOPES)],
    window: Annotated[str, typer.Argument(help="hour, day or total.")],
    limit: Annotated[str, typer.Argument(help="Such as 500000tokens or 20usd; none lifts it.")],
    unit: Annotated[str | None, typer.Option(help="tokens or usd, for a number or none.")] = None,
    config: ConfigOption = None,
) -> None:
    """Set a limit over the one in raycade.yaml. Running jobs go by it within seconds."""
    from runtime.budget import set_limit

    raise typer.Exit(set_limit(config, scope, window, limit, unit))


@budget.command("halt")
def budget_halt(
    scope: Annotated[str, typer.Argument(help=SCOPES)],
    config: ConfigOption = None,
) -> None:
    """Stop all spending of a scope, until it is resumed."""
    from runtime.budget import halt

    raise typer.Exit(halt(config, scope))


@budget.command("resume")
def budget_resume(
    scope: Annotated[str | None, typer.Argument(help=f"{SCOPES} Default: all that are stopped.")] = None,
    config: ConfigOption = None,
) -> None:
    """Let go on what an anomaly, or somebody, has stopped."""
    from runtime.budget import resume

    raise typer.Exit(resume(config, scope))


@app.command()
def status(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; dollars as micro-dollars.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Live, with rates, until Ctrl-C.")] = False,
    web: Annotated[
        bool, typer.Option("--web", help="Say where its page is, and open it where there is a display.")
    ] = False,
) -> None:
    """Tell what is running with this state_dir: progress, each tier actor's state and why, budgets."""
    if web:
        from runtime.status import pages

        if as_json or watch:
            raise ConfigError("goes with neither --json nor --watch", key="--web")
        raise typer.Exit(pages(config))
    if watch:
        from runtime.watch import watch as show

        if as_json:
            raise ConfigError("goes not with --json; ask for --json again and again instead", key="--watch")
        raise typer.Exit(show(config))
    from runtime.status import status as tell

    raise typer.Exit(tell(config, as_json))


@app.command()
def bench(
    scenarios: Annotated[
        list[str] | None, typer.Argument(metavar="SCENARIO", help="Default: all but capacity, which is slow.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="To see that it works; not to be quoted.")] = False,
    out: Annotated[str, typer.Option(help="Folder of the page and the numbers.")] = "bench-out",
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Compare with what `make peers` sets up.")] = True,
) -> None:
    """Measure this machine's throughput against mock endpoints, and make a page of it. Needs a checkout."""
    from runtime.bench import run_bench

    raise typer.Exit(run_bench(scenarios or [], quick, out, peers))


def main() -> None:
    """Entry point of `raycade` and `python -m runtime`."""
    try:
        app()
    except ConfigError as error:
        print(f"raycade: {error}", file=sys.stderr)
        sys.exit(2)
    except RaycadeError as error:
        print(f"raycade: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
