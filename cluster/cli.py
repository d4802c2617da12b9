"""The command line: `theta make | verify | info | train | prompt | evaluate | report | demo`."""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import tyro
from ray.train.v2.api.exceptions import TrainingFailedError
from rich.console import Console
from rich.table import Table

from ckpt_factory.files import check_writable, write_text
from ckpt_factory.zoo import Zoo

from . import demo, evaluate, factory, info, prompt, report, train, verify
from .progress import say
from .runtime import AddressConfig, RayConfig, ray_session

Outcome = tuple[dict[str, Any], Path, int]
"""What goes into result.json, the folder it goes into, and the exit status."""


@dataclass(frozen=True)
class Command:
    """One verb: its options are the fields of `config`, its presets functions that return such a config."""

    help: str
    config: type[Any]
    run: Callable[[Any], Outcome]
    presets: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    starts_ray: bool = True
    """Whether it needs Ray; the others read files, and do so on a cluster if they are given its address."""
    examples: str = ""


def _make(config: factory.FactoryConfig) -> Outcome:
    made = factory.CheckpointFactory(config).fit()
    if made.error:
        say(made.error, label="incomplete", style="red")
    return made.metrics | {"error": made.error}, made.path, 1 if made.error else 0


def _verify(config: verify.VerifyConfig) -> Outcome:
    Zoo.open(config.zoo)
    check_writable(config.out or config.zoo / "verify")
    found, result = verify.verify(config)
    for problem in found.problems:
        say(problem, label="damaged", style="red")
    if found.missing_units:
        say(
            f"unfinished: {len(found.missing_units)} shards are missing; `theta make` with the same "
            "settings resumes"
        )
    elif found.damaged_units:
        say("`theta make --repair` with the zoo's own settings makes damaged shards anew")
    return result, config.out or config.zoo / "verify", 0 if found.ok else 2


def _train(config: train.GeneratorConfig) -> Outcome:
    return train.fit(config), config.out, 0


def _prompt(config: prompt.PromptConfig) -> Outcome:
    rows, result = prompt.prompt(config)
    column = result["prompted_column"]
    shown = ["prompt", f"start_{column}", column, *(name for name in rows[0] if name.startswith("test_"))]
    table = Table("network", *(name.replace("_", " ") for name in shown))
    for row in rows:
        table.add_row(row["file"].removesuffix(".safetensors"), *(f"{row[name]:.4f}" for name in shown))
    Console().print(table)
    return result, config.out, 0


def _evaluate(config: evaluate.EvaluateConfig) -> Outcome:
    return evaluate.evaluate(config), config.out, 0


def _report(config: report.ReportConfig) -> Outcome:
    return report.report(config), config.out, 0


def _info(config: info.InfoConfig) -> Outcome:
    Zoo.open(config.zoo)
    check_writable(config.out or config.zoo / "info")
    return info.info(config), config.out or config.zoo / "info", 0


def _demo(config: demo.DemoConfig) -> Outcome:
    return demo.demo(config), config.out, 0


COMMANDS = {
    "demo": Command(
        "The whole job on scikit-learn's digits: zoo, generator, evaluation, report. Minutes on a laptop.",
        demo.DemoConfig,
        _demo,
        presets=demo.PRESETS,
        examples="theta demo\ntheta demo --preset smoke --out /tmp/smoke",
    ),
    "make": Command(
        "Make a zoo: train networks by the thousand in Ray actors and write their checkpoints as Parquet "
        "shards.",
        factory.FactoryConfig,
        _make,
        presets=factory.PRESETS,
        examples="theta make --preset digits --out zoo\n"
        "theta make --preset mnist --data-root data --out zoo-mnist --address auto",
    ),
    "verify": Command(
        "Check a zoo: checksums of every file, counts, finiteness, duplicates, metrics measured again.",
        verify.VerifyConfig,
        _verify,
        examples="theta verify --zoo zoo",
    ),
    "info": Command(
        "Say what is in a zoo.", info.InfoConfig, _info, starts_ray=False, examples="theta info --zoo zoo"
    ),
    "train": Command(
        "Train a generator on a zoo with Ray Train, fed by Ray Data. Killed, it goes on with the same "
        "command.",
        train.GeneratorConfig,
        _train,
        presets=train.PRESETS,
        examples="theta train --preset digits --zoo zoo --out generator",
    ),
    "prompt": Command(
        "Make networks: one update from fresh initialisations or your own network, for the metric you ask "
        "for.",
        prompt.PromptConfig,
        _prompt,
        examples="theta prompt --generator generator --prompts 0.1 0.5 1.0\n"
        "theta prompt --generator generator --start mine.safetensors --prompts 0.1 --updates 3",
    ),
    "evaluate": Command(
        "Evaluate a generator on held-out runs and the test split, with the controls that keep it honest.",
        evaluate.EvaluateConfig,
        _evaluate,
        examples="theta evaluate --generator generator --zoo zoo --out evaluation",
    ),
    "report": Command(
        "Write one self-contained HTML report of zoo, generator and evaluation.",
        report.ReportConfig,
        _report,
        starts_ray=False,
        examples="theta report --zoo zoo --generator generator --evaluation evaluation --out report",
    ),
}


def run(args: Sequence[str]) -> int:
    """Run `theta` with these arguments and return its exit status.

    0: done; 1: done in part, and said which; 2: bad input, in one line; 130: interrupted, to be resumed.
    """
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR)
    if not args or args[0] in ("-h", "--help"):
        Console().print(_overview(), highlight=False)
        return 0
    name, *rest = args
    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown command {name!r}; {hint}expected one of {', '.join(COMMANDS)}")
        return _run_command(name, COMMANDS[name], rest)
    except (ValueError, OSError, ray.exceptions.RayError, TrainingFailedError) as error:
        if debug:
            raise
        cause = getattr(error, "cause", None) or error  # what a remote call raised, without its traceback
        sys.stderr.write(f"theta {name}: {' '.join(str(cause).split())[:600]}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"theta {name}: interrupted; the same command goes on from here\n")
        return 130


def _run_command(name: str, command: Command, args: list[str]) -> int:
    config, where = _parse(name, command, args)
    config, started = _absolute(config), time.monotonic()
    if isinstance(where, RayConfig):
        with ray_session(where):
            result, out, status = command.run(config)
    elif where.address or os.environ.get("RAY_ADDRESS"):
        with ray_session(RayConfig(address=where.address)):
            result, out, status = ray.get(ray.remote(command.run).remote(config))
    else:
        result, out, status = command.run(config)
    result.setdefault("wall_s", time.monotonic() - started)
    check_writable(out)
    write_text(
        out / "result.json", json.dumps(_finite(result), indent=2, default=str, allow_nan=False) + "\n"
    )
    table = Table("result", "value", title=f"theta {name}")
    for key, value in result.items():
        if not isinstance(value, list | dict):
            table.add_row(
                key,
                f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}"
                if type(value) is int
                else str(value),
            )
    Console().print(table)
    say(f"written: {out / 'result.json'}")
    return status


def _parse(name: str, command: Command, args: list[str]) -> tuple[Any, AddressConfig]:
    """Flags to a config: a preset's values, or the defaults, with the given flags on top."""
    preset, args = _take_preset(name, command, args)
    default = command.presets[preset]() if preset else command.config()
    where = RayConfig if command.starts_ray else AddressConfig
    options = dataclasses.make_dataclass("Options", [("config", command.config), ("ray", where)])
    description = command.help
    if command.presets:
        presets = "\n".join(
            f"  --preset {key}: {(make.__doc__ or '').strip()}" for key, make in command.presets.items()
        )
        description += f"\n\nPresets, whose values any flag overrides:\n{presets}"
    description += "\n\nExamples:\n" + "\n".join(f"  {line}" for line in command.examples.splitlines())
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                options,
                args=args,
                default=options(default, where()),
                prog=f"theta {name}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_one_line(errors.getvalue())) from None
        raise
    return parsed.config, parsed.ray


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


def _finite(value: Any) -> Any:
    """The same for JSON, which knows no infinity (a step count never reached) and no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _take_preset(name: str, command: Command, args: list[str]) -> tuple[str | None, list[str]]:
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag != "--preset":
            continue
        if not equals:
            value = args[i + 1] if i + 1 < len(args) else ""
        if value not in command.presets:
            known = ", ".join(command.presets) or "none"
            raise ValueError(f"unknown preset {value!r}; theta {name} has: {known}")
        return value, args[:i] + args[i + (1 if equals else 2) :]
    return None, args


def _one_line(box: str) -> str:
    """The words of an error box: what was wrong, and what may have been meant."""
    lines = [
        line.strip("│╰╯─ ") for line in box.splitlines() if not line.startswith("╭")
    ]  # but not its title
    lines = [line for line in lines if set(line) != {"─"}]
    text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    return text.partition(" Argument helptext:")[0] + "; see --help"


def _overview() -> Table:
    table = Table(
        "theta", "Networks made, not trained: checkpoint zoos, and generators that learn from them.", box=None
    )
    for name, command in COMMANDS.items():
        table.add_row(name, command.help)
    table.add_row(
        "", "`theta COMMAND --help` shows its options, presets and examples; --debug shows tracebacks."
    )
    return table
