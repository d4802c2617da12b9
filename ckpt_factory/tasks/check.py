"""check_task: the contract that every task keeps, as a public function; registering is testing."""

import pickle
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from .base import SPLITS, Task, seeded
from .registry import spec as task_spec

PICKLABLE = "make what it keeps from functions and classes of a module, no lambdas and no local functions"


def check_task(task: Task, *, num_runs: int = 4, batch_size: int = 16, tolerance: float = 1e-4) -> None:
    """Check that a task keeps the contract; raises AssertionError naming the first clause that is broken.

    A stack equals its single runs in loss, gradient and metrics; `gradients` equals autograd of `loss`;
    metrics and answers to examples, where it has any, are invariant under the task's symmetry; the same
    seed gives the same theta; the spec round-trips; the task pickles; its id resolves in a fresh process.
    """
    theta = _check_init(task, num_runs)
    _check_batches(task, theta, batch_size, tolerance)
    _check_metrics(task, theta, tolerance)
    _check_outputs(task, theta, tolerance)
    _check_identity(task, theta)


def _check_init(task: Task, num_runs: int) -> Tensor:
    theta = task.init([seeded(0, k) for k in range(num_runs)])
    _assert(theta.shape == (num_runs, task.spec.D), f"init gives (K, D), got {tuple(theta.shape)}")
    again = torch.cat([task.init([seeded(0, k)]) for k in range(num_runs)])
    _assert(torch.equal(theta, again), "run k of init depends on rngs[k] alone")
    _close(task.spec.flatten(task.spec.unflatten(theta)), theta, 0.0, "spec.flatten inverts spec.unflatten")
    return theta


def _check_batches(task: Task, theta: Tensor, batch_size: int, tolerance: float) -> None:
    """Loss and gradient: stack against singles, runs that share a batch, `gradients` against autograd."""
    num_runs = len(theta)

    def loss_and_gradients(part: slice, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
        def batch() -> object:
            return task.sampler([seeded(1, group) for group in groups], batch_size)(params)

        params = {name: value.contiguous() for name, value in task.spec.unflatten(theta[part]).items()}
        gradients = task.spec.flatten(task.gradients(params, batch()))
        autograd = task.spec.flatten(Task.gradients(task, params, batch()))
        _close(
            gradients, autograd, tolerance, f"gradients is the gradient of loss, batches of groups {groups}"
        )
        return task.loss(theta[part], batch()), gradients

    loss, gradients = loss_and_gradients(slice(num_runs), range(num_runs))
    for k in range(num_runs):
        part = slice(k, k + 1)
        loss_alone, gradients_alone = loss_and_gradients(part, [k])
        _close(loss_alone, loss[part], tolerance, f"loss of run {k} alone")
        _close(gradients_alone, gradients[part], tolerance, f"gradient of run {k} alone")
    half = num_runs // 2
    shared, _ = loss_and_gradients(slice(2 * half), [0, 1])
    apart = [loss_and_gradients(slice(g * half, (g + 1) * half), [g])[0] for g in (0, 1)]
    _close(shared, torch.cat(apart), tolerance, "runs of one group share its batch")


def _check_metrics(task: Task, theta: Tensor, tolerance: float) -> None:
    """Metrics: their names, stack against singles, invariance under the symmetry."""
    _assert(task.metric in task.metrics, f"metric {task.metric!r} is one of {task.metrics}")
    permuted = task.symmetry.apply(theta, task.symmetry.random(len(theta), rng=seeded(2)))
    for split in SPLITS:
        metrics, moved = task.evaluate(theta, split), task.evaluate(permuted, split)
        _assert(set(metrics) == set(task.metrics), f"evaluate gives {task.metrics}, got {tuple(metrics)}")
        for name, values in metrics.items():
            _close(moved[name], values, tolerance, f"{split} {name} under the task's symmetry")
            single = torch.cat([task.evaluate(theta[k : k + 1], split)[name] for k in range(len(theta))])
            _close(single, values, tolerance, f"{split} {name} of single runs")


def _check_outputs(task: Task, theta: Tensor, tolerance: float) -> None:
    """Answers to examples: invariance, stack against singles, their divergence from themselves."""
    if not task.answers_examples:
        return
    index = torch.arange(min(8, task.num_examples("train"))).flip(0)
    (x, y), (whole, labels) = task.examples("train", index), task.examples("train")
    outputs = task.outputs(theta, x)
    _assert(torch.equal(y, labels[index]), "examples picks labels by index")
    _close(x, whole[index], tolerance, "examples picked by index")
    _assert(outputs.shape[:2] == (len(theta), len(x)), f"outputs are (K, B, ...), got {tuple(outputs.shape)}")
    single = torch.cat([task.outputs(theta[k : k + 1], x) for k in range(len(theta))])
    _close(single, outputs, tolerance, "outputs of single runs")
    plain = functional_call(task.module().eval(), task.spec.unflatten(theta[0]), (x,))
    _close(plain, outputs[0], tolerance, "outputs of the plain module")
    permuted = task.symmetry.apply(theta, task.symmetry.random(len(theta), rng=seeded(2)))
    _close(task.outputs(permuted, x), outputs, tolerance, "outputs under the task's symmetry")
    own = task.divergence(theta, theta, x)
    _close(own, torch.zeros(len(theta)), tolerance, "the divergence of networks from themselves is 0")


def _check_identity(task: Task, theta: Tensor) -> None:
    """The task survives the wire, and its id finds it elsewhere."""
    try:
        copy = pickle.loads(pickle.dumps(task))
    except Exception as error:  # whatever a task's attributes raise
        raise AssertionError(
            f"check_task: broken contract: the task pickles: {error}; {PICKLABLE}"
        ) from error
    before, after = (each.evaluate(theta, "validation")[task.metric] for each in (task, copy))
    _close(after, before, 0.0, "a pickled task is the same task")
    task_spec(task.id)
    code = f"import ckpt_factory; ckpt_factory.spec({task.id!r})"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    why = fresh.stderr.strip().rpartition("\n")[2][:200]
    _assert(fresh.returncode == 0, f"id {task.id!r} resolves in a fresh process: {why}")


def _assert(holds: bool, clause: str) -> None:
    if not holds:
        raise AssertionError(f"check_task: broken contract: {clause}")


def _close(got: Tensor, expected: Tensor, tolerance: float, clause: str) -> None:
    error = float((got - expected).abs().max() / (1 + expected.abs().max()))
    _assert(error <= tolerance, f"{clause} (differs by {error:.2g}, tolerance {tolerance:g})")
