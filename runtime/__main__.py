"""`python -m runtime` is the command `raycade`, and begins here: what is not there to be imported is told in one line."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of `raycade`."""
    try:
        from runtime.cli import main as run
    except ModuleNotFoundError as error:
        print(f"raycade: {_without(error.name or '')}", file=sys.stderr)
        sys.exit(2)
    run()


def _without(name: str) -> str:
    package = name.partition(".")[0]
    if package != "actors":
        return f"the package {package} is not installed for {sys.executable}: raycade and what it needs come with pip"
    there = getattr(sys.modules.get(package), "__file__", None)
    return (
        f"its package actors is {f'hidden by {there}' if there else 'not there'}: rename a folder or file of your own with "
        "that name, or start from another folder"
    )


if __name__ == "__main__":
    main()
