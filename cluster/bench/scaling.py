"""How the factory scales: runs a second of one actor and of two, and the memory of the driver."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_factory.bench.clock import interleaved, medians

from ..factory import LOG
from ..tables import print_table
from .benchmark import RepeatedConfig, benchmark, check_filled, check_positive

PROGRAM = __name__.partition(".")[0]
"""What `python -m` runs as `theta`."""
KEPT = ("RAY_worker_niceness",)
"""What a Ray of its own takes over from this process's: not its address, nor its token."""
TINY = ("--num-steps", "2", "--num-checkpoints", "2")
"""A recipe for zoos of many runs and few bytes: the driver sees units, not parameters."""


@dataclass(frozen=True, kw_only=True)
class ScalingBenchConfig(RepeatedConfig):
    """Runs a second of one actor against two, each in a Ray of its own, and the memory of the driver."""

    runs_per_actor: int = 4096
    """Digits runs that each actor trains."""
    num_runs: tuple[int, ...] = (1000, 10_000)
    """Sizes of zoos that the driver's memory is measured at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "runs_per_actor")
        check_filled(self, "num_runs")


def bench_scaling(config: ScalingBenchConfig) -> dict[str, Any]:
    """Measure one actor against two, then the driver's memory."""
    found = measure_scaling(config.runs_per_actor, config.repeats, config.out)
    found |= measure_memory(config.num_runs, config.out)
    print_table(
        {
            f"{actors} actor{'s' * (actors > 1)}": {
                "runs/s": found[f"runs_per_s_{actors}"],
                "CPU s/run": found[f"cpu_s_per_run_{actors}"],
                "CPU share": found[f"cpu_share_{actors}"],
                "% idle": 100 * found[f"idle_share_{actors}"],
            }
            for actors in (1, 2)
        },
        f"scaling: two actors make {found['speedup']:.3g} times the runs of one, "
        f"{found['speedup_by_cpu_time']:.3g} times by their CPU time",
        "digits, each actor from its first unit's start to its last one's end. CPU share: CPU time by wall "
        "time of its units; on a busy machine it is below 1, and the figure by CPU time is the one to "
        "believe. Idle: waiting for the next unit.",
    )
    print_table(
        {f"{int(size):,} runs": {"peak RSS MB": mb} for size, mb in found["driver_peak_rss_mb"].items()},
        "memory of the driver",
        "peak of `theta make`'s own process, with Ray and torch loaded.",
    )
    return found


def measure_scaling(runs_per_actor: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Make zoos of digits with one actor on one CPU and two on two, in turns, each in its own Ray."""
    logs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}

    def probe(actors: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            out = Path(temporary) / "zoo"
            make_zoo(out, "--num-runs", actors * runs_per_actor, "--num-cpus", actors)
            logs[actors].append(
                log := [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
            )
        return throughput(log)

    samples = interleaved({actors: lambda actors=actors: probe(actors) for actors in logs}, repeats)
    rate = medians(samples)
    found: dict[str, Any] = {"speedup": rate[2] / rate[1], "runs_per_actor": runs_per_actor}
    for actors, rounds in logs.items():
        reports = [report for log in rounds for report in log]
        cpu_s, wall_s = (sum(report[key] for report in reports) for key in ("cpu_s", "wall_s"))
        found |= {
            f"runs_per_s_{actors}": rate[actors],
            f"cpu_s_per_run_{actors}": cpu_s / sum(report["runs"] for report in reports),
            f"cpu_share_{actors}": cpu_s / wall_s,
            f"idle_share_{actors}": 1 - wall_s / sum(span_s(log) for log in rounds),
        }
    # What other programs take of the CPUs does not count here: each actor's rate by its CPU time.
    per_cpu_s = {n: (1 - found[f"idle_share_{n}"]) / found[f"cpu_s_per_run_{n}"] for n in logs}
    found["speedup_by_cpu_time"] = 2 * per_cpu_s[2] / per_cpu_s[1]
    return found | {"samples": {f"runs_per_s_{actors}": values for actors, values in samples.items()}}


def throughput(log: Sequence[dict[str, Any]]) -> float:
    """Runs a second of all actors, each from its first unit's start to its last one's end, waiting included.

    Starting the actors is left out: it costs the same seconds whatever the size of the zoo.
    """
    return sum(sum(report["runs"] for report in own) / _span_s(own) for own in _by_actor(log))


def span_s(log: Sequence[dict[str, Any]]) -> float:
    """Seconds of all actors, each from its first unit's start to its last one's end, waiting included."""
    return sum(_span_s(own) for own in _by_actor(log))


def _by_actor(log: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    actors: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for report in log:
        actors.setdefault((report["host"], report["pid"]), []).append(report)
    return list(actors.values())


def _span_s(own: Sequence[dict[str, Any]]) -> float:
    begun = min(report["started"] for report in own)
    return max(report["started"] + report["wall_s"] for report in own) - begun


def measure_memory(sizes: Iterable[int], folder: Path) -> dict[str, Any]:
    """The driver's peak memory in MB by the number of runs that it has made."""
    peaks: dict[str, float] = {}
    ordered = sorted(set(sizes))
    for size in ordered:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            peaks[str(size)] = make_zoo(Path(temporary) / "zoo", "--num-runs", size, *TINY)
    found: dict[str, Any] = {"driver_peak_rss_mb": peaks}
    if len(ordered) > 1:
        grown = peaks[str(ordered[-1])] - peaks[str(ordered[0])]
        found["driver_growth_mb"] = grown
        found["driver_growth_mb_per_1000_runs"] = grown / (ordered[-1] - ordered[0]) * 1000
    return found


def make_zoo(out: Path, *flags: object) -> float:
    """Run `theta make` in a process and a Ray of its own; returns that process's peak memory in MB."""
    return run_theta("make", "--out", out, *flags)


def run_theta(*words: object) -> float:
    """Run a command of `theta` in a process and a Ray of its own; returns that process's peak memory in MB.

    Raises:
        ValueError: it failed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k in KEPT}
    command = [sys.executable, "-m", PROGRAM, *words]
    with tempfile.TemporaryFile("w+") as text:
        process = subprocess.Popen([str(part) for part in command], stdout=text, stderr=text, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            text.seek(0)
            raise ValueError(f"`theta {' '.join(map(str, words))}` failed: {text.read()[-400:]}")
    return usage.ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


COMMAND = benchmark(
    ScalingBenchConfig,
    bench_scaling,
    examples="theta bench scaling\ntheta bench scaling --num-runs 1000 10000 100000",
)
