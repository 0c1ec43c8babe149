"""`raycade prompts ...`: options are read here; releases are changed in prompts_release.py, drawn in prompts_view.py.

The commands need no Ray and work beside running jobs. A gateway takes a new release up by itself (prompts.LivePrompts); a
batch job keeps the one it began with (prompts_job.py).
"""

import os
import re
from typing import Annotated, Any

import typer

from actors.errors import ConfigError, InputError

__all__ = ["app"]

app = typer.Typer(help="Versions of prompts: look, release, try, roll back, compare.", no_args_is_help=True)

ConfigOption = Annotated[str | None, typer.Option("-c", "--config", help="Default: raycade.yaml.")]
NameArgument = Annotated[str, typer.Argument(help="The prompt's folder below prompts/.")]
RefArgument = Annotated[str, typer.Argument(help="NAME, or NAME@V for one version.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
ReasonOption = Annotated[str, typer.Option(help="Stands in the history, for whoever asks later.")]


@app.command("list")
def list_prompts(config: ConfigOption = None) -> None:
    """What there is, and what of it is live."""
    from runtime.prompts import load_prompts
    from runtime.prompts_view import listing

    _console().print(listing(load_prompts(_config(config).prompts.dir)))


@app.command()
def show(prompt: RefArgument, config: ConfigOption = None) -> None:
    """All that a version is: the stable one, or the one named."""
    from runtime.prompts_view import shown_version

    print(shown_version(_version(prompt, config)))


@app.command()
def diff(name: NameArgument, old: int, new: int, config: ConfigOption = None) -> None:
    """What differs between two versions."""
    from runtime.prompts_view import diff as compared

    for line in compared(_version(f"{name}@{old}", config), _version(f"{name}@{new}", config)):
        print(line)


@app.command()
def release(
    name: NameArgument,
    stable: Annotated[int | None, typer.Option(min=1, help="The version for everyone. Default: as it is.")] = None,
    trial: Annotated[list[str] | None, typer.Option(help="V=SHARE, such as 3=0.1; may be given again.")] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
) -> None:
    """Make a version live. On trial are the versions named here and no others."""
    from runtime.prompts_release import release as change
    from runtime.prompts_view import live

    if stable is None and not trial:
        raise ConfigError("say what is to be live: --stable V, --trial V=SHARE, or both", key="release")
    print(live(name, change(_config(config).prompts.dir, name, stable, _weights(trial or []), reason)))


@app.command()
def rollback(name: NameArgument, reason: ReasonOption = "", config: ConfigOption = None) -> None:
    """Go back to the version before the last release, with nothing on trial. Again: one further back."""
    from runtime.prompts_release import rollback as change
    from runtime.prompts_view import live

    print(live(name, change(_config(config).prompts.dir, name, reason)))


@app.command()
def log(name: NameArgument, config: ConfigOption = None) -> None:
    """What was live since when, and why; the latest first."""
    from runtime.prompts import load_prompts
    from runtime.prompts_view import history

    try:
        released = load_prompts(_config(config).prompts.dir, only=name).release(name)
    except InputError as error:
        raise ConfigError(error.message) from None
    for line in history(released):
        print(line)


@app.command()
def failures(
    prompt: Annotated[str | None, typer.Argument(help="NAME or NAME@V. Default: all.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, help="So many reasons.")] = 10,
) -> None:
    """Replies that did not satisfy their schema, grouped by reason, with the last of each."""
    import orjson

    from runtime.prompts import parse_ref
    from runtime.prompts_view import failures as read

    name, version = parse_ref(prompt) if prompt is not None else (None, None)
    found = read(_config(config).state_dir, name, version)
    if as_json:
        print(orjson.dumps([reason._asdict() for reason in found], option=orjson.OPT_INDENT_2).decode())
        return
    if not found:
        print("no refused reply is on record here")
    for reason in found[:limit]:
        where = ", ".join(f"{ref} {count}" for ref, count in sorted(reason.prompts.items()))
        print(
            f"{reason.replies:,} x {reason.error}\n    {where}; tiers {', '.join(sorted(reason.tiers))}; last {reason.last}"
        )
        print("    " + _one_line(reason.reply) + "\n")
    if len(found) > limit:
        print(f"and {len(found) - limit} other reasons (--limit)")


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The output of a batch job, or its journal.")],
    as_json: JsonOption = False,
) -> None:
    """Compare the versions of one run: rows, parse failures, retries, tokens, cost and latency."""
    from runtime.prompts_report import report as printed

    raise typer.Exit(printed(run, as_json, _console()))


def _config(path: str | None) -> Any:
    """The configuration, or its defaults where there is none: a prompt can be released before there is any tier."""
    from runtime.config import DEFAULT_FILE, PromptSettings, load_config

    if path is None and not os.path.exists(DEFAULT_FILE):

        class Defaults:
            prompts = PromptSettings()
            state_dir = ".raycade"

        return Defaults
    return load_config(path, os.environ, check_keys=False)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, width=None if os.isatty(1) else 200)


def _version(ref: str, config: str | None) -> Any:
    from runtime.prompts import load_prompts, parse_ref

    name, number = parse_ref(ref)
    registry = load_prompts(_config(config).prompts.dir, only=name)
    try:
        return registry.version(name, registry.release(name).stable if number is None else number)
    except InputError as error:
        raise ConfigError(error.message) from None


def _weights(trials: list[str]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for text in trials:
        found = re.fullmatch(r"([1-9][0-9]{0,5})=([0-9]*\.?[0-9]+)(%?)", text)
        share = float(found[2]) / (100 if found[3] else 1) if found else -1.0
        if found is None or not 0 <= share <= 1 or int(found[1]) in weights:
            raise ConfigError(
                f"expected VERSION=SHARE such as 3=0.1, each version once; found {text[:60]!r}", key="--trial"
            )
        weights[int(found[1])] = share
    return weights


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:300])
