"""Learning curves: what policies return on episodes of their own after how many steps of the environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ckpt_factory import RunPlan
from ckpt_factory.bench.contenders import FactoryStack

from .algorithm import Learner
from .tasks import PolicyTask

MOMENTS = 48
"""Most measurements of a run, log-spaced over its training like the axis that they are drawn on."""
GRID = 200
"""Points of a summary's curve."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """R runs, each measured at M moments of its training."""

    env_steps: Int64[ndarray, "R M"]
    """Steps of the environment that were really taken, not those that an algorithm may take at most."""
    returns: Float64[ndarray, "R M"]
    """Mean return of sampled actions over the task's test episodes, of the very policy of that moment."""
    cpu_s_per_run: float
    """Of training; measuring is left out."""

    def env_steps_to(self, target: float) -> Float64[ndarray, " R"]:
        """When each run was first seen to return as much: infinite where it never was."""
        good = self.returns >= target
        first = np.take_along_axis(self.env_steps, good.argmax(1)[:, None], 1)[:, 0]
        return np.where(good.any(1), first, np.inf)

    def summary(self) -> dict[str, ndarray]:
        """Mean over runs and the middle 80 % of them, by steps of the environment.

        Runs are interpolated between their moments, and nothing is said of steps that not all have taken.
        """
        first, last = self.env_steps[:, 1].min(), self.env_steps[:, -1].min()
        at = np.geomspace(first, last, GRID).clip(first, last)  # geomspace rounds
        rows = zip(self.env_steps, self.returns, strict=True)
        each = np.stack([np.interp(at, steps, values) for steps, values in rows])
        low, high = np.quantile(each, [0.1, 0.9], axis=0)
        return {"env_steps": at, "mean": each.mean(0), "low": low, "high": high}


def learning_curves(task: PolicyTask, plan: RunPlan, run_ids: Sequence[int]) -> Curves:
    """Train these runs together, and measure all their policies at up to MOMENTS moments.

    PPO's moments are those before a rollout, when all of the last one has been learnt from.
    """
    runs = plan.runs(run_ids)
    stack, moments = FactoryStack(task, plan, runs), moments_of(task, plan.num_steps, runs[0].batch_size)
    learner = stack.next_batch
    assert isinstance(learner, Learner)
    env_steps = np.zeros((len(runs), len(moments)), np.int64)
    returns, cpu_s = np.zeros(env_steps.shape), 0.0
    for m, moment in enumerate(moments):
        started = process_time()
        stack.advance(moment - stack.step)
        cpu_s += process_time() - started
        env_steps[:, m] = learner.env_steps
        returns[:, m] = stack.evaluate("test")["return"].numpy()
    return Curves(env_steps=env_steps, returns=returns, cpu_s_per_run=cpu_s / len(runs))


def moments_of(task: PolicyTask, num_steps: int, batch_size: int) -> list[int]:
    """Steps of the optimizer to measure at: 0, the last one, and between them starts of rollouts."""
    seen = [task.env_steps(step, batch_size) for step in range(num_steps + 2)]
    starts = [step for step in range(1, num_steps + 1) if seen[step + 1] > seen[step] or step == num_steps]
    if len(starts) > MOMENTS:
        places = np.geomspace(1, len(starts), MOMENTS).round().astype(int)
        starts = [starts[place - 1] for place in sorted(set(places.tolist()))]
    return [0, *starts]


def facts(curves: Curves, target: float) -> dict[str, Any]:
    """A curve as JSON takes it, with what it took to a return of `target`."""
    reached = curves.env_steps_to(target)
    return {
        "env_steps_to_target": float(np.median(reached)),
        "runs_that_reached_it": int(np.isfinite(reached).sum()),
        "runs": len(reached),
        "final_return": float(curves.returns[:, -1].mean()),
        "untrained_return": float(curves.returns[:, 0].mean()),
        "cpu_s_per_run": curves.cpu_s_per_run,
        "curve": {name: values.tolist() for name, values in curves.summary().items()},
        "of_each_run": {
            "env_steps": curves.env_steps.tolist(),
            "return": curves.returns.tolist(),
            "env_steps_to_target": reached.tolist(),
        },
    }


Panels = Mapping[str, Mapping[str, Any]]
"""Title -> {"target": ..., "algorithms": {name: what `facts` says of it}}."""
