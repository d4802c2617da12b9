"""How benchmarks measure: CPU seconds of this process, all probes in turn, the median of the rounds."""

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")


def cpu_seconds(function: Callable[[], object], calls: int = 1) -> float:
    """CPU seconds of one call, on all threads of this process, as the mean of several."""
    started = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - started) / calls


def calls_for(function: Callable[[], object], seconds: float) -> int:
    """How many calls take that many CPU seconds; calls it twice, the first time to warm it up."""
    function()
    return max(1, math.ceil(seconds / max(cpu_seconds(function), 1e-7)))


def interleaved(probes: Mapping[Key, Callable[[], float]], repeats: int) -> dict[Key, list[float]]:
    """What each probe returns in each of the rounds, in which all take turns; each round begins with another.

    So a disturbance of the machine meets all of them alike, and ratios of their medians hold on a busy one.
    """
    keys = list(probes)
    samples: dict[Key, list[float]] = {key: [] for key in keys}
    for i in range(repeats):
        first = i % len(keys)
        for key in keys[first:] + keys[:first]:
            samples[key].append(probes[key]())
    return samples


def medians(samples: Mapping[Key, list[float]]) -> dict[Key, float]:
    return {key: median(values) for key, values in samples.items()}


def machine() -> dict[str, Any]:
    """What figures depend on and a reader has to know."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.strip() for key, value in found.items()}
    model = known.get("model name", platform.machine())
    units = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in known.get("flags", "")
    ]
    return f"{model} ({', '.join(units)})" if units else model
