"""The command `theta`: prepares Ray's environment, then hands over to the command line."""

import os
import sys

from .runtime import prepare_environment


def main() -> None:
    """Look for the address before the real parser runs, since Ray reads its environment at import."""
    flags = [arg.partition("=")[0] for arg in sys.argv]
    prepare_environment("given" if "--address" in flags else os.environ.get("RAY_ADDRESS") or None)
    from .cli import run  # noqa: PLC0415

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
