"""Evolution strategies as a sampler: the estimate is the paper's, a stack equals its singles, it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from ckpt_factory import RunPlan, make, train_stack
from ckpt_factory.tasks.base import seeded
from cluster.factory_config import mountaincar_continuous
from rl_tasks.evaluate import Episodes, play_episodes
from rl_tasks.evolution import centred_ranks
from rl_tasks.seeds import mix
from rl_tasks.tasks import PolicyTask, policy_task


def task_of(env: str = "CartPole-v1", **changes: object) -> PolicyTask:
    options = {"algorithm": "es", "hidden": "6", "episodes": 4, "max_steps": 60} | changes
    task = policy_task(env=env, **options)
    task.id = "evolving"
    return task


def params_of(task: PolicyTask, theta: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.spec.unflatten(theta).items()}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_stack_equals_its_singles_to_the_last_bit(env: str) -> None:
    task = task_of(env)
    theta = task.init([seeded(0, k) for k in range(3)])

    def gradients(runs: list[int]) -> torch.Tensor:
        next_batch = task.sampler([seeded(1, k) for k in runs], 6)
        params = params_of(task, theta[runs])
        return torch.stack([next_batch(params).gradient for _ in range(2)], 1)

    together = gradients([0, 1, 2])
    assert all(torch.equal(gradients([k])[0], together[k]) for k in range(3))
    assert not torch.equal(together[:, 0], together[:, 1])


def test_the_estimate_is_that_of_the_paper() -> None:
    """Salimans et al. 2017, algorithm 1 with mirrored samples and ranks, one perturbation after the other."""
    task, sigma, pairs = task_of(), 0.1, 5
    s, theta = task.setting, task.init([seeded(0)])
    found = task.sampler([seeded(1)], 2 * pairs)(params_of(task, theta)).gradient[0].numpy()
    rng = seeded(1)  # draws in the learner's order
    seed = int(torch.randint(2**62, (), generator=rng))
    epsilon = torch.randn(pairs, task.spec.D, generator=rng)
    noise = s.head.draw([rng], (2, s.env.max_steps))
    each = Episodes(mix(np.array([[seed]]), 0, 0, np.arange(2)), noise)
    returns, directions = [], []
    for sign in (1, -1):
        for direction in epsilon:
            moved = (theta + sign * sigma * direction).numpy()
            played = play_episodes(s.net, s.head, s.make_env(), moved, each, s.scale)
            returns.append(played.returns.mean())
            directions.append(sign * direction.numpy())
    shaped = (rankdata(returns) - 1) / (2 * pairs - 1) - 0.5
    expected = -sum(f * d for f, d in zip(shaped, directions, strict=True)) / (2 * pairs * sigma)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)  # float32


def test_the_steps_that_perturbed_policies_took_are_counted() -> None:
    """Of each run its own; `env_steps` of the task is what they may be at most."""
    task, num_perturbed = task_of(), 6
    theta = task.init([seeded(0, k) for k in range(3)])
    learner = task.sampler([seeded(1, k) for k in range(3)], num_perturbed)
    assert learner.env_steps.tolist() == [0]
    seen = []
    for _ in range(2):
        learner(params_of(task, theta))
        seen.append(learner.env_steps)
    for step, counted in enumerate(seen, 1):
        assert (counted >= step * num_perturbed * 2 * 5).all()  # no policy falls in less than 5 steps
        assert (counted < task.env_steps(step, num_perturbed)).all()
    assert len(set(seen[0].tolist())) == 3
    alone = task.sampler([seeded(1, 2)], num_perturbed)
    alone(params_of(task, theta[2:]))
    assert alone.env_steps.tolist() == seen[0][2:].tolist()


def test_ranks_are_centred_ties_are_equal_and_a_lost_return_is_not_hidden() -> None:
    ranks = centred_ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [1.0, np.nan, 2.0]]))
    assert ranks[0].tolist() == [0.5, -0.5, 0.0]
    assert ranks[1].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(ranks[2]).all()


def test_an_odd_number_of_perturbations_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 7; expected an even number"):
        task_of().sampler([seeded(0)], 7)


def test_evolution_improves_cartpole() -> None:
    task = task_of(max_steps=100)
    plan = RunPlan(
        num_steps=25,
        batch_size=(16,),
        optimizer=("adamw",),
        lr=(0.5, 0.5),
        weight_decay=(0.0, 0.0),
        num_checkpoints=2,
        hyper={"sigma": (0.2, 0.2)},
    )
    returns = train_stack(task, plan, plan.runs(range(4))).metrics["test_return"]
    assert (returns[:, -1] > 1.5 * returns[:, 0]).all()
    assert task.env_steps(3, 16) == 3 * 16 * 2 * 100


@pytest.mark.slow
def test_evolution_solves_the_mountain_car() -> None:
    """The preset's recipe: of 16 runs nearly all end at a return of 90 or more."""
    config = mountaincar_continuous()
    plan = replace(config.plan, spacing="log", num_checkpoints=2)
    returns = train_stack(make(config.task), plan, plan.runs(range(16))).metrics["test_return"]
    assert (returns[:, 0] < 0).all()
    assert (returns[:, -1] >= 90).float().mean() >= 0.8
