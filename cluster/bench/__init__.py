"""Benchmarks as commands, `theta bench NAME`: each is the module of its name, and its `COMMAND`."""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A line of the overview."""

    measures: str
    takes: str
    """How long, with defaults."""


BENCHMARKS = {
    "factory": Benchmark("CPU time of a run, beside plain loops and vmap", "3 to 7 min"),
    "storage": Benchmark("stored checkpoints, beside LMDB, safetensors, npy", "1 min"),
    "scaling": Benchmark("one actor against two, and the driver's memory", "10 min"),
    "tailr": Benchmark("cross-entropy and TaiLr where labels are wrong", "30 s"),
    "rl": Benchmark("steps of CartPole, and the way to a good policy", "2 min"),
    "curves": Benchmark("learning curves of PPO and evolution strategies", "4 min"),
    "samplers": Benchmark("a generator's samplers, by evaluations of its model", "30 min"),
    "training": Benchmark("a generator's training step, and its wait for data", "5 min"),
    "memorisation": Benchmark("what is remembered, by the number of training runs", "hours"),
    "generator": Benchmark("our generator against the published one", "hours"),
}
"""Known without importing any of them."""
