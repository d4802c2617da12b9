"""The registered tasks: the contract, their options, and what they refuse."""

import pickle

import numpy as np
import pytest
import torch

from ckpt_factory import RunPlan, Task, check_task, make, train_stack
from ckpt_factory.tasks.base import Variation, seeded
from ckpt_factory.train import check_plan, initial_networks
from rl_tasks.tasks import PolicyTask

TASKS = ["cartpole-v0", "acrobot-v0", "mountaincar-continuous-v0", "pendulum-v0", "gym-v0?env=CartPole-v1"]


def policies(id: str) -> PolicyTask:
    task = make(f"rl_tasks:{id}")
    assert isinstance(task, PolicyTask)
    return task


@pytest.mark.parametrize(
    "id",
    [
        "cartpole-v0?episodes=4&max_steps=100",
        pytest.param("cartpole-v0?activation=tanh&algorithm=es&episodes=4", marks=pytest.mark.slow),
        "pendulum-v0?episodes=4&max_steps=50",
    ],
)
def test_tasks_keep_the_contract(id: str) -> None:
    check_task(policies(id))


@pytest.mark.parametrize("id", TASKS)
def test_every_task_is_made_measured_and_pickled(id: str) -> None:
    task = policies(f"{id}{'&' if '?' in id else '?'}max_steps=20&episodes=4")
    theta = task.init([seeded(0, k) for k in range(2)])
    metrics = task.evaluate(theta, "validation")
    assert set(metrics) == set(task.metrics)
    assert (metrics["return"] != 0).all()
    assert task.objective == "max"
    copy = pickle.loads(pickle.dumps(task))
    assert torch.equal(copy.evaluate(theta, "validation")["return"], metrics["return"])


def test_cartpole_is_the_published_policy() -> None:
    task = policies("cartpole-v0")
    assert task.spec.sizes == (128, 32, 1024, 32, 64, 2)
    assert "SELU" in str(task.module())
    assert task.setting.env.max_steps == 500
    assert policies("pendulum-v0").spec.names[0] == "log_std"


def test_options_are_honoured() -> None:
    task = policies("cartpole-v0?activation=tanh&hidden=16,8&max_steps=50&copies=2&rollout=8&epochs=5")
    assert task.spec.sizes == (64, 16, 128, 8, 16, 2)
    assert task.symmetry.signed == ("P0", "P1")
    assert task.setting.env.max_steps == 50
    assert task.env_steps(1, 16) == 16
    assert task.env_steps(6, 16) == 32


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("cartpole-v0?hidden=32,x", "hidden is '32,x'; expected numbers of units with commas"),
        ("cartpole-v0?hidden=0", "hidden is '0'; expected numbers"),
        ("cartpole-v0?episodes=3", "episodes is 3; expected an even number, at least 4"),
        ("cartpole-v0?activation=gelu", "activation"),
        ("cartpole-v0?algorithm=es&epochs=3", "copies, rollout and epochs are options of algorithm ppo"),
        ("cartpole-v0?trials=3", "trials of es; algorithm is 'ppo'"),
        ("cartpole-v0?copies=0", "at least 1"),
        (
            "cartpole-v0?max_steps=1000000000000",
            "max_steps 1000000000000 are too many steps; expected at most",
        ),
        ("cartpole-v0?episodes=1000000", "1000000 episodes of max_steps 500 are too many"),
        ("cartpole-v0?hidden=1000000,1000000", "expected at most 4096 units in a layer"),
        ("cartpole-v0?copies=100000&rollout=100000", "at most 100,000,000 steps"),
        ("cartpole-v0?algorithm=es&trials=1000000", "at most 100,000,000 steps"),
        ("gym-v0?env=CartPol-v1", "Did you mean 'CartPole-v1'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        policies(id)
    assert "\n" not in str(caught.value)


def test_a_plan_for_labelled_data_is_refused() -> None:
    task = policies("cartpole-v0")
    noisy = Variation(label_noise=(0.1,), data_fraction=(1.0,), gamma=(0.0,))
    with pytest.raises(ValueError, match="has no labels"):
        task.sampler([seeded(0)], 64, noisy)
    with pytest.raises(ValueError, match="expected a divisor of the 512 transitions"):
        check_plan(task, RunPlan(batch_size=(100,)))


def test_rules_of_initialisation_leave_a_gaussian_policys_spread_to_the_task() -> None:
    task = policies("pendulum-v0?max_steps=20&episodes=4&copies=2&rollout=16")
    plan = RunPlan(
        num_steps=4, num_checkpoints=2, batch_size=(16,), init=("default", "orthogonal", "kaiming")
    )
    check_plan(task, plan)
    runs = plan.runs(range(12))
    assert len({run.init for run in runs}) == 3
    own = task.spec.unflatten(task.init(plan.init_rngs(runs)))
    for k, run in enumerate(runs):
        found = task.spec.unflatten(initial_networks(task, plan, [run])[0])
        assert torch.equal(found["log_std"], own["log_std"][k])
        assert torch.equal(found["actor.2.weight"], own["actor.2.weight"][k]) == (run.init == "default")
        assert found["actor.0.bias"].any() == (run.init == "default")
    assert train_stack(task, plan, runs).finite().all()


def test_policies_are_not_for_a_gpu() -> None:
    """Their rollouts are numpy's; a GPU that an actor has been given would do nothing."""
    task, plan = policies("cartpole-v0"), RunPlan(batch_size=(64,))
    for refused in (
        lambda: check_plan(task, plan, "cuda"),
        lambda: train_stack(task, plan, plan.runs(range(1)), device="cuda"),
    ):
        with pytest.raises(ValueError, match=r"cartpole-v0 trains on CPUs alone.*leave out --use-gpu"):
            refused()
    check_plan(make("digits-mlp-v0"), RunPlan(), "cuda")


def test_hyper_parameters_that_a_task_does_not_know_are_refused(digits: Task) -> None:
    task = policies("cartpole-v0")
    check_plan(task, RunPlan(batch_size=(64,), hyper={"clip": (0.1, 0.3)}))
    with pytest.raises(ValueError, match=r"hyper has clipp; did you mean 'clip'\? .*discount \(0.99\)"):
        check_plan(task, RunPlan(batch_size=(64,), hyper={"clipp": (0.1, 0.3)}))
    with pytest.raises(ValueError, match=r"hyper has clip; digits-mlp-v0 knows .*: none of its own"):
        check_plan(digits, RunPlan(hyper={"clip": (0.1, 0.3)}))


@pytest.mark.parametrize(
    ("options", "hyper", "message"),
    [
        ("", {"clip": (-1.0, 0.1)}, "hyper clip is -1; expected above 0"),
        ("", {"discount": (0.9, 3.0)}, "hyper discount is 3; expected at least 0 and below 1"),
        ("", {"gae_lambda": (0.9, 1.1)}, "hyper gae_lambda is 1.1; expected from 0 to 1"),
        ("", {"max_grad_norm": (-1.0, -1.0)}, "hyper max_grad_norm is -1; expected above 0"),
        ("?algorithm=es", {"sigma": (0.0, 0.1)}, "hyper sigma is 0; expected above 0"),
    ],
)
def test_hyper_parameters_out_of_their_range_are_refused(
    options: str, hyper: dict[str, tuple[float, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_plan(policies(f"cartpole-v0{options}"), RunPlan(batch_size=(64,), hyper=hyper))


@pytest.mark.parametrize("options", ["", "?algorithm=es"])
def test_every_hyper_parameter_has_a_range_that_its_default_is_in(options: str) -> None:
    algorithm = policies(f"cartpole-v0{options}").algorithm
    assert set(algorithm.ranges) == set(algorithm.hyper)
    algorithm.check_hyper({name: [value] for name, value in algorithm.hyper.items()})


@pytest.mark.parametrize("options", ["algorithm=ppo&rollout=8&copies=4", "algorithm=es&trials=2"])
def test_what_broke_in_an_environment_is_told_once(options: str) -> None:
    task = policies(f"gym-v0?env=tests.rl_tasks.own_envs:Faulty-raise-v0&max_steps=6&{options}")
    plan = RunPlan(num_steps=2, batch_size=(8,), optimizer=("adamw",), num_checkpoints=2)
    assert task.fault() == ""
    assert not train_stack(task, plan, plan.runs(range(2))).finite().any()
    why = "RuntimeError: the robot fell off the table (environment tests.rl_tasks.own_envs:Faulty-raise-v0)"
    assert task.fault() == why
    assert task.fault() == ""


def test_a_policy_of_nan_is_no_fault_of_its_environment() -> None:
    task = policies("gym-v0?env=tests.rl_tasks.own_envs:Recording-v0&max_steps=6")
    env = task.setting.make_env()
    env.reset(np.arange(2))
    env.step(np.full((2, 2), np.nan))
    assert env.broken.all()
    assert task.fault() == ""
