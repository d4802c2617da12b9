"""The commands that there are, known without importing any of them."""

import difflib
import importlib
from collections.abc import Iterable

from rich.table import Column, Table

from .bench import BENCHMARKS
from .command import Command

VERBS = {
    "demo": (
        "demo",
        "The whole job on scikit-learn's digits: zoo, generator, evaluation, report. Minutes on a laptop.",
    ),
    "make": (
        "factory",
        "Make a zoo: train networks by the thousand in Ray actors, write checkpoints as Parquet shards.",
    ),
    "import": (
        "imports",
        "Import checkpoints trained elsewhere into a zoo: a published LMDB set, or a folder of networks.",
    ),
    "import-gpt": (
        "import_gpt",
        "Import a released model of the published system (Peebles et al. 2022) as a generator.",
    ),
    "export": ("exports", "Export a zoo as a Hugging Face dataset."),
    "verify": (
        "verify",
        "Check a zoo: checksums of every file, counts, finiteness, duplicates, metrics measured again.",
    ),
    "info": ("info", "Say what is in a zoo."),
    "train": (
        "train",
        "Train a generator on a zoo with Ray Train, fed by Ray Data. Killed, the same command resumes it.",
    ),
    "calibrate": (
        "calibration",
        "Calibrate a trained generator's prompts on training initialisations, and how far its updates go.",
    ),
    "moments": (
        "moments",
        "Measure how uncertain a generator's predictions are, which analytic samplers need to know.",
    ),
    "tune": (
        "sweeps.tune",
        "Train generators of many sizes, rates and amounts of data with Ray Tune, and fit how losses scale.",
    ),
    "ablate": (
        "sweeps.ablate",
        "Train the default and every variant of it by one change, at equal CPU time, and judge them alike.",
    ),
    "prompt": (
        "prompt",
        "Make networks: one update from fresh initialisations or your network, for the metric you want.",
    ),
    "evaluate": (
        "evaluate",
        "Evaluate a generator on held-out runs and the test split, with the controls that keep it honest.",
    ),
    "audit": (
        "audit",
        "Audit a generator, or networks from elsewhere: new, copies, or no better than noise on training's?",
    ),
    "watch": (
        "watch",
        "Film policies that a generator makes, side by side, each with its prompt and its return.",
    ),
    "report": ("report", "Write one self-contained HTML report of zoo, generator and evaluation."),
    "bench": (
        "bench",
        "Measure on this machine, beside the alternatives; `theta bench` lists what, and how long it takes.",
    ),
}
"""Verb -> (module of this package whose COMMAND it is, help); a module is imported when its verb is used.
`bench` is a package: every one of its benchmarks is a command, "bench rl"."""


def command_of(name: str) -> Command:
    """The command of a verb, "train", or of a benchmark, "bench rl".

    Raises:
        ValueError: there is none of that name, or it is not said which benchmark.
    """
    if name == "bench":
        raise ValueError(
            "name a benchmark before its options, as in `theta bench factory --repeats 3`; there are "
            + ", ".join(BENCHMARKS)
        )
    verb, _, benchmark = name.partition(" ")
    if verb == "bench":
        _check_known("benchmark", benchmark, BENCHMARKS)
        module = f"{VERBS[verb][0]}.{benchmark}"
    else:
        _check_known("command", name, VERBS)
        module = VERBS[name][0]
    return importlib.import_module(f"{__package__}.{module}").COMMAND


def about(name: str) -> str:
    """What a command does, for its help."""
    verb, of_bench, benchmark = name.partition(" ")
    if not of_bench:
        return VERBS[verb][1]
    measures, takes = BENCHMARKS[benchmark]
    return f"Measure {measures}; takes {takes}."


def _check_known(what: str, given: str, known: Iterable[str]) -> None:
    if given not in known:
        hint = did_you_mean(given, known)
        raise ValueError(f"unknown {what} {given!r}; {hint}expected one of {', '.join(known)}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """What was probably meant, as a question; empty where nothing is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def overview() -> Table:
    """What `theta` alone shows."""
    table = Table(
        "theta", "Networks made, not trained: checkpoint zoos, and generators that learn from them.", box=None
    )
    for name, (_, help_text) in VERBS.items():
        table.add_row(name, help_text)
    table.add_row(
        "",
        "`theta COMMAND --help` shows its options, presets and examples; --debug shows tracebacks; "
        "`theta --version` says which thetaforge this is.",
    )
    return table


def overview_of_benchmarks() -> Table:
    """What `theta bench` alone shows."""
    table = Table("theta bench", "measures", Column("takes", no_wrap=True), box=None)
    for name, (measures, takes) in BENCHMARKS.items():
        table.add_row(name, measures, takes)
    table.add_row("", "`theta bench NAME --help` shows options, examples.")
    return table
