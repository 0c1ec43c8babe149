"""`raycade metrics`: the alerts and the dashboard that belong to the metrics, as files to redirect."""

from importlib.resources import files

import typer

from runtime.telemetry.dashboard import dashboard

__all__ = ["app", "rules"]

app = typer.Typer(help="Alert rules and a dashboard for the metrics that jobs serve.", no_args_is_help=True)


def rules() -> str:
    """The alert rules, as Prometheus reads them."""
    return files("runtime.telemetry").joinpath("rules.yaml").read_text()


@app.command("rules")
def _rules() -> None:
    """Print alert rules for Prometheus."""
    print(rules(), end="")


@app.command("dashboard")
def _dashboard() -> None:
    """Print a dashboard for Grafana."""
    print(dashboard(), end="")
