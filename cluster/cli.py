"""The command line: `theta make | verify | info | train | tune | prompt | evaluate | report | ...`."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
import tyro.constructors
from rich.table import Column, Table

from .command import Command
from .progress import Screen, say
from .runtime import AddressConfig, RayConfig, ray_session
from .verbs import about, command_of, did_you_mean, overview, overview_of_benchmarks

HELP = ("-h", "--help")


def run(args: Sequence[str]) -> int:
    """Run `theta` with these arguments and return its exit status.

    0: done; 1: done in part, or judged and not passed, and said which; 2: bad input, in one line; 130:
    interrupted, to be resumed.
    """
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR)
    if not args or args[0] in HELP:
        Screen().print(overview(), highlight=False)
        return 0
    if args == ["--version"]:
        Screen().print(f"thetaforge {importlib.metadata.version('thetaforge')}", highlight=False)
        return 0
    name, *rest = args
    if name == "bench" and (not rest or rest[0] in HELP):
        Screen().print(overview_of_benchmarks(), highlight=False)
        return 0
    if name == "bench" and not rest[0].startswith("-"):
        name, rest = f"bench {rest[0]}", rest[1:]
    command = None
    try:
        command = command_of(name)
        return _run_command(name, command, rest)
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        cause = getattr(error, "cause", None) or error  # what a remote call raised, without its traceback
        sys.stderr.write(f"theta {name}: {' '.join(str(cause).split())[:600]}\n")
        return 2
    except KeyboardInterrupt as stop:
        resumes = command is not None and command.resumes
        then = "the same command goes on from here" if resumes else "the same command begins anew"
        sys.stderr.write(f"theta {name}: interrupted; {str(stop) or then}\n")
        return 130


def _is_expected(error: Exception) -> bool:
    """Whether an error is about what was given or about the cluster, not about this program."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("ray.")


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send, is as Ctrl-C; Ray's own handler dies with a trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run_command(name: str, command: Command, args: list[str]) -> int:
    config, where = _parse(name, command, args)
    config, started = _absolute(config), time.monotonic()
    _check_out(config)
    command.check(config)
    if isinstance(where, RayConfig):
        with ray_session(where), _terminated_is_interrupted():
            result, out, status = command.run(config)
    elif where.address or os.environ.get("RAY_ADDRESS"):
        with ray_session(RayConfig(address=where.address)), _terminated_is_interrupted():
            import ray  # noqa: PLC0415  after its environment

            result, out, status = ray.get(ray.remote(command.run).remote(config))
    else:
        result, out, status = command.run(config)
    from ckpt_factory.files import check_writable  # noqa: PLC0415  with torch: not for an overview

    from .result import RESULT, write_result  # noqa: PLC0415  as above

    result.setdefault("wall_s", time.monotonic() - started)
    check_writable(out)
    write_result(out, result)
    table = Table(Column("result", no_wrap=True), Column("value", overflow="fold"), title=f"theta {name}")
    for key, value in result.items():
        if value is not None and not isinstance(value, list | dict):
            table.add_row(
                key,
                f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}"
                if type(value) is int
                else str(value),
            )
    Screen().print(table)
    say(f"written: {out / RESULT}")
    return status


def _parse(name: str, command: Command, args: list[str]) -> tuple[Any, AddressConfig]:
    """Flags to a config: a preset's values, or the defaults, with the given flags on top."""
    preset, args = _take_preset(name, command, args)
    default = command.presets[preset]() if preset else command.config()
    where = RayConfig if command.starts_ray else AddressConfig
    options = dataclasses.make_dataclass("Options", [("config", command.config), ("ray", where)])
    description = about(name)
    if command.presets:
        presets = "\n".join(
            f"  --preset {key}: {(make.__doc__ or '').strip()}" for key, make in command.presets.items()
        )
        description += (
            f"\n\nPresets, whose values any flag overrides (--preset NAME --help shows them):\n{presets}"
        )
    description += "\n\nExamples:\n" + "\n".join(f"  {line}" for line in command.examples.splitlines())
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                options,
                args=args,
                default=options(_without_dicts(default), where()),
                prog=f"theta {name}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_one_line(errors.getvalue())) from None
        raise
    return _with_dicts(parsed.config, default), parsed.ray


def _without_dicts(config: Any) -> Any:
    """A config whose dicts are empty, as tyro wants them to take NAME VALUE pairs."""
    return _with_each_dict(config, lambda _: {})


def _with_dicts(config: Any, default: Any) -> Any:
    """What the dicts of a default hold, a preset's, with what was given on top."""
    return _with_each_dict(config, lambda path: _at(default, path) | _at(config, path))


def _with_each_dict(config: Any, value: Callable[[tuple[str, ...]], dict], path: tuple[str, ...] = ()) -> Any:
    changes = {}
    for each in dataclasses.fields(config):
        old = getattr(config, each.name)
        if isinstance(old, dict):
            changes[each.name] = value((*path, each.name))
        elif dataclasses.is_dataclass(old):
            changes[each.name] = _with_each_dict(old, value, (*path, each.name))
    return dataclasses.replace(config, **changes)


def _at(config: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(getattr, path, config)


def _is_range(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple and typing.get_args(kind) == (float, float)


def _registry() -> tyro.constructors.ConstructorRegistry:
    """How tyro reads what it knows, but does not know what it means: a pair of numbers is a range.

    Where there may be none, too: tyro itself would report what is wrong with either alternative.
    """
    registry = tyro.constructors.ConstructorRegistry()
    _join_lines_of_help(registry)

    @registry.primitive_rule
    def rule(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = [kind for kind in typing.get_args(info.type) if kind is not type(None)]
        optional = len(kinds) == 1 and len(typing.get_args(info.type)) == 2
        if not _is_range(kinds[0] if optional else info.type):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",  # of two alone, tyro would say itself that one is missing, and not what it is
            metavar="LOW HIGH",
            instance_from_str=_range,
            is_instance=lambda value: (
                (isinstance(value, tuple) and len(value) == 2) or (optional and value is None)
            ),
            str_from_instance=lambda value: [str(each) for each in (value or ())],
        )

    return registry


def _join_lines_of_help(registry: tyro.constructors.ConstructorRegistry) -> None:
    """Have the lines of a field's docstring joined, which tyro would break where the source does."""
    asked = False

    @registry.struct_rule
    def rule(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
        nonlocal asked
        if asked:  # by this very rule: tyro's own ones answer
            return None
        asked = True
        try:
            found = registry.get_struct_spec(info)
        finally:
            asked = False
        if not isinstance(found, tyro.constructors.StructConstructorSpec):
            return None
        fields = [
            dataclasses.replace(each, helptext=functools.partial(_joined, each.helptext))
            for each in found.fields
        ]
        return dataclasses.replace(found, fields=tuple(fields))


def _joined(text: str | Callable[[], str | None] | None) -> str | None:
    """One line for each paragraph."""
    text = text() if callable(text) else text
    return text and re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def _range(given: list[str]) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except ValueError:
        number = given[0] if len(given) == 1 else "0.1"
        raise ValueError(
            f"got {' '.join(given) or 'nothing'}; expected a range of two numbers, LOW HIGH; twice the same "
            f"number fixes it: {number} {number}"
        ) from None
    return low, high


def _absolute(config: Any) -> Any:
    """A config whose paths mean the same on every node of a cluster, whatever folder its workers run in."""
    changes = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if isinstance(value, Path):
            changes[each.name] = value.absolute()
        elif dataclasses.is_dataclass(value):
            changes[each.name] = _absolute(value)
    return dataclasses.replace(config, **changes)


def _check_out(config: Any) -> None:
    """Refuse to write results among what they are made from."""
    out = config.out.resolve()
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.name != "out" and isinstance(value, Path) and value.resolve() == out:
            raise ValueError(
                f"--out is {config.out}, which is --{each.name.replace('_', '-')} too; give another"
            )


def _take_preset(name: str, command: Command, args: list[str]) -> tuple[str | None, list[str]]:
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag != "--preset":
            continue
        if not equals:
            value = args[i + 1] if i + 1 < len(args) else ""
        if value not in command.presets:
            known = ", ".join(command.presets) or "none"
            hint = did_you_mean(value, command.presets)
            raise ValueError(f"unknown preset {value!r}; {hint}theta {name} has: {known}")
        return value, args[:i] + args[i + (1 if equals else 2) :]
    return None, args


def _one_line(box: str) -> str:
    """The words of an error box: what was wrong, and what may have been meant."""
    lines = [line.strip("│╰╯─ ") for line in box.splitlines()[1:]]  # the first is its title
    lines = [line for line in lines if set(line) != {"-"}]  # rules, where a terminal knows ASCII alone
    text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    text = re.sub(r"^Error parsing (config[\w.]*: )?", "", text.partition(" Argument helptext:")[0])
    choice = re.search(r"invalid choice '(.*?)' .*Expected one of \((.*?)\)", text)
    if choice:
        known = sorted(set(re.findall(r"'(.*?)'", choice[2])) - {"None"})
        hint = did_you_mean(choice[1], known).removesuffix(" ")
        text = text[: choice.start(2) - 1] + ", ".join(known) + (f"; {hint}" if hint else "")
    return f"{text.removesuffix('.')}; see --help"
