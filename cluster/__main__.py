"""The command `theta`: prepares Ray's environment, then hands over to the command line."""

import os
import signal
import sys

from .runtime import prepare_environment


def main() -> None:
    """Look for the address before the real parser runs, since Ray reads its environment at import."""
    address = os.environ.get("RAY_ADDRESS") or None
    for arg, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        flag, equals, value = arg.partition("=")
        if flag == "--address":
            address = (value if equals else following) or None
    if os.getcwd() not in sys.path:
        sys.path.append(
            os.getcwd()
        )  # as `python -m` does, for `--task my_tasks:name-v0`; Ray's workers get it too
    prepare_environment(None if address == "None" else address)
    from .cli import run  # noqa: PLC0415

    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # who reads what is written has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


if __name__ == "__main__":
    main()
