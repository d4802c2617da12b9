"""Numbers as tables in a terminal, those of the factory bench among them."""

import math
import os
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from .progress import Screen

WIDE = 200
"""Columns of text where tables are written into a file or a pipe, which cut nothing off."""


def show_table(table: Table) -> None:
    """Print a table, on a terminal within its width."""
    console = Screen()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Screen(width=WIDE)
    console.print(table)


def print_table(rows: Mapping[str, Mapping[str, float | None]], title: str, caption: str) -> None:
    """A row each, under the columns of the first; a number that is not there is left out."""
    columns = list(next(iter(rows.values())))
    table = Table(title=title, caption=caption)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *[short(row[c]) for c in columns])
    show_table(table)


def short(value: float | None) -> str:
    """Three figures, or all before the point; what took for ever never came."""
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def print_factory(name: str, found: Mapping[str, Any]) -> None:
    """What `measure_factory` found for a task."""
    peaks = ", ".join(f"{p} {found[f'peak_{p}_gflop_per_cpu_s']:,.0f}" for p in ("float32", "bfloat16"))
    rows = {
        contender: {
            "us/step": each["us_per_step"],
            "ms/eval": each["ms_per_evaluation"],
            "ms/save": each["ms_per_stored_checkpoint"],
            "CPU s/run": each["cpu_s_per_run"],
            "x plain": each.get("times_plain_loop", 1.0),
            "% peak": 100 * each["share_of_peak"],
        }
        for contender, each in found["contenders"].items()
    }
    print_table(
        rows,
        f"{name}: {found['gflop_per_run']:.3g} GFLOP a run",
        f"{found['recipe']}. Measured are a step, an evaluation and a saved checkpoint of one run, in stacks "
        f"of {found['runs_per_stack']} (the plain loop: one network); CPU s a run is extrapolated from them. "
        f"Peak of matrix products in GFLOP/CPU s: {peaks}; each is compared with that of its precision.",
    )
    if found.get("whole_stacks"):
        whole = {
            contender: {
                "CPU s/run": each["cpu_s_per_run"],
                "with validation": each["cpu_s_per_run_with_validation"],
                "% peak": 100 * each["share_of_peak"],
                "compiling s": each["first_stack_more_wall_s"],
            }
            for contender, each in found["whole_stacks"].items()
        }
        print_table(
            whole,
            f"{name}: whole stacks",
            "Measured from the initialisation to the shard on disk, once; a zoo's checkpoints are evaluated "
            "on the validation split, too. Compiling: wall time by which the first stack took longer.",
        )
    if found.get("final_test_error_against_float32"):
        paired = {
            variant: {
                "% error": 100 * (each["reference"] + each["mean_difference"]),
                "in float32": 100 * each["reference"],
                "change": 100 * each["mean_difference"],
                "from": 100 * each["low"],
                "to": 100 * each["high"],
                "p": each["p_value"],
            }
            for variant, each in found["final_test_error_against_float32"].items()
        }
        print_table(
            paired,
            f"{name}: final test error by precision",
            "Percent, the same runs in pairs; the mean change with its 95 % interval and the p-value of "
            "none.",
        )
