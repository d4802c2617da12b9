"""Training: the loss falls, and a training that was killed goes on as if it had not been."""

import copy
import io
import math
from typing import Any, get_args

import pytest
import torch

from ckpt_factory import Task
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig, WeightDiT
from generator.training.pairs import Pairs
from generator.training.train import OptimizerName, TrainConfig, Training, faster_precision, train

CONFIG = TrainConfig(
    model=DiTConfig(width=16, depth=1, heads=2),
    steps=40,
    batch_size=16,
    warmup_steps=5,
    precision="float32",
    report_every=5,
    checkpoint_every=15,
)


class Problem:
    """Networks that move along one direction, as far as their prompt says: what is learnt is linear."""

    def __init__(self, task: Task):
        self.coordinates = Coordinates.fit(task, rank=3)
        rng = torch.Generator().manual_seed(0)
        tokens = self.coordinates.tokens
        unit = torch.randn(tokens.layers[0].width, generator=rng)  # the same for all: units have no names
        rest = torch.randn(tokens.rest_width, generator=rng)
        self.direction = torch.cat([unit.repeat(tokens.num_units), rest])
        pairs = self.draw(0, 500, rng)
        self.scaling = Scaling.fit(self.coordinates, pairs, pairs.prompt)

    def draw(self, step: int, num: int, rng: torch.Generator) -> Pairs:
        start = torch.randn(num, self.coordinates.Z, generator=rng)
        prompt = 0.5 + torch.rand(num, generator=rng)
        target = start + (prompt - 1).unsqueeze(1) * self.direction
        metric = torch.ones(num) + 0.1 * torch.rand(num, generator=rng)
        return Pairs(start, metric.unsqueeze(1), target, prompt.unsqueeze(1))

    def model(self, config: TrainConfig) -> WeightDiT:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return WeightDiT(self.coordinates.tokens, config.model)


@pytest.fixture(scope="module")
def problem(tiny: Task) -> Problem:
    return Problem(tiny)


def trained(
    problem: Problem, config: TrainConfig, **options: Any
) -> tuple[dict, list[dict], dict[int, bytes]]:
    """(state of model and average, reports, saved states by step)."""
    model, reports, states = problem.model(config), [], {}

    def report(metrics, state) -> None:
        reports.append(metrics)
        if state is not None:
            content = io.BytesIO()
            torch.save(state, content)
            states[metrics["step"]] = content.getvalue()

    ema = train(model, problem.draw, problem.scaling, config, report=report, **options)
    return {"model": model.state_dict(), "ema": ema.state_dict()}, reports, states


def assert_equal(a: dict, b: dict) -> None:
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), (part, name)


def learning(**fields: Any) -> TrainConfig:
    """Steps enough to learn what there is to learn."""
    small = {"steps": 250, "batch_size": 64, "lr": 3e-3, "warmup_steps": 10, "precision": "float32"}
    small |= {"checkpoint_every_s": 1e6}  # reports are of steps alone, on a busy machine, too
    return TrainConfig(**{"model": CONFIG.model, **small, **fields})


def test_the_loss_falls_to_nothing_where_the_prompt_says_all(problem: Problem) -> None:
    _, reports, _ = trained(problem, learning())
    losses = [entry["loss"] for entry in reports]
    # a scaled update has unit size, and no update is predicted at first; the first report is of 25 steps
    assert 0.5 < losses[0] < 1.3
    # the prompt says all there is to know: .001 measured
    assert losses[-1] < 0.02
    assert [entry["step"] for entry in reports] == list(range(25, 251, 25))
    assert reports[-1]["progress"] == 1


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1.0), ("lion", 1e-3), ("tiger", 3e-2), ("amos", 0.1)])
def test_the_loss_falls_under_every_optimizer(problem: Problem, optimizer: str, lr: float) -> None:
    """From layers of zeros, too: a rule that scales its steps by the parameter must not stand still there."""
    _, reports, _ = trained(problem, learning(optimizer=optimizer, lr=lr, steps=100, batch_size=32))
    assert reports[-1]["loss"] < 0.4 * reports[0]["loss"]  # .26 (Lion) down to .003 (Amos) measured


def test_every_optimizer_decays_weight_matrices_alone(problem: Problem) -> None:
    for optimizer in get_args(OptimizerName):
        config = TrainConfig(**vars(CONFIG) | {"optimizer": optimizer, "weight_decay": 0.3})
        groups = Training(problem.model(config), config, 0).optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
        assert [{param.ndim for param in group["params"]} for group in groups] == [{2}, {1}]
        assert all(group.get("stacked", False) is False for group in groups)


@pytest.mark.parametrize(
    ("optimizer", "killed_at"),
    [("adamw", 15), ("adamw", 30), ("sgd", 15), ("lion", 15), ("tiger", 30), ("amos", 15)],
)
def test_a_resumed_training_is_bit_identical_to_an_uninterrupted_one(
    problem: Problem, optimizer: str, killed_at: int
) -> None:
    config = TrainConfig(**vars(CONFIG) | {"optimizer": optimizer})
    whole, reports, states = trained(problem, config)
    assert sorted(states) == [15, 30, 40]
    state = torch.load(io.BytesIO(states[killed_at]), weights_only=True)
    assert state["step"] == killed_at
    resumed, later, _ = trained(problem, config, state=state)
    assert_equal(resumed, whole)
    expected = {entry["step"]: entry["loss"] for entry in reports if entry["step"] > killed_at}
    assert {entry["step"]: entry["loss"] for entry in later} == expected


def test_a_state_is_that_of_its_step_and_not_of_the_end(problem: Problem) -> None:
    whole, _, states = trained(problem, CONFIG)
    early = torch.load(io.BytesIO(states[15]), weights_only=True)
    last = torch.load(io.BytesIO(states[40]), weights_only=True)
    assert_equal(last, whole)
    assert any(not torch.equal(early["model"][name], value) for name, value in whole["model"].items())


def test_training_is_a_function_of_the_seed_and_each_rank_draws_its_own(problem: Problem) -> None:
    first, again = (trained(problem, CONFIG)[0] for _ in range(2))
    assert_equal(first, again)
    for options in ({"config": TrainConfig(**vars(CONFIG) | {"seed": 1})}, {"config": CONFIG, "rank": 1}):
        other, _, _ = trained(problem, **options)
        assert any(not torch.equal(other["model"][name], v) for name, v in first["model"].items())


def test_every_step_asks_for_its_pairs_once(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    draw = problem.draw
    monkeypatch.setattr(
        problem, "draw", lambda step, num, rng: asked.append((step, num)) or draw(step, num, rng)
    )
    trained(problem, CONFIG)
    assert asked == [(step, 16) for step in range(40)]


def test_a_time_budget_ends_the_training_and_saves_it(problem: Problem) -> None:
    config = TrainConfig(
        model=CONFIG.model, steps=10**6, time_budget_s=0.2, batch_size=4, warmup_steps=0, precision="float32"
    )
    _, reports, states = trained(problem, config)
    assert 0 < reports[-1]["step"] < 10**6
    assert reports[-1]["progress"] == 1
    assert list(states) == [reports[-1]["step"]]


def test_a_budget_of_cpu_seconds_ends_the_training_wherever_it_is_resumed(problem: Problem) -> None:
    config = TrainConfig(
        model=CONFIG.model,
        steps=10**6,
        cpu_budget_s=0.3,
        batch_size=4,
        warmup_steps=0,
        precision="float32",
        checkpoint_every=10,
        report_every=10,
    )
    _, reports, states = trained(problem, config)
    used = [entry["process_s"] for entry in reports]
    assert used == sorted(used)
    assert 0.3 <= used[-1] < 0.6  # it looks at the clock every ten steps
    assert reports[-1]["progress"] == 1
    early = torch.load(io.BytesIO(states[10]), weights_only=True)
    assert early["process_s"] == used[0]
    _, later, _ = trained(problem, config, state=early)
    assert later[0]["process_s"] > used[0]
    assert 0.3 <= later[-1]["process_s"] < 0.6


def test_checkpoints_that_take_long_are_further_apart(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which a step takes a second and a checkpoint five."""
    now = 0.0

    def draw(step: int, num: int, rng: torch.Generator) -> Pairs:
        nonlocal now
        now += 1
        return problem.draw(step, num, rng)

    def report(metrics: dict, state: dict | None) -> None:
        nonlocal now
        now += 5
        saved.append(metrics["step"])

    saved: list[int] = []
    monkeypatch.setattr("generator.training.train.time.monotonic", lambda: now)
    rare = {"report_every": 10**6, "checkpoint_every": 10**6, "checkpoint_every_s": 20.0}
    config = TrainConfig(**vars(CONFIG) | rare | {"steps": 400, "batch_size": 2})
    train(problem.model(config), draw, problem.scaling, config, report=report)
    assert saved == [20, 120, 220, 320, 400]  # it looks at the clock every ten steps


def test_bfloat16_trains_float32_parameters(problem: Problem) -> None:
    config = TrainConfig(**vars(CONFIG) | {"precision": "bfloat16", "steps": 5})
    state, reports, _ = trained(problem, config)
    assert all(value.dtype == torch.float32 for value in state["ema"].values())
    assert 0 < reports[-1]["loss"] < 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, "lr is 0.0; expected a positive, finite number"),
        ({"ema": 1.0}, r"ema 1.0 must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay -1.0 and"),
        ({"time_budget_s": 0.0}, "time_budget_s is 0.0"),
        ({"cpu_budget_s": -1.0}, "cpu_budget_s is -1.0; expected a positive number of seconds"),
    ],
)
def test_impossible_configs_say_what_is_expected(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_off_the_cpu_the_precision_is_what_the_device_knows() -> None:
    """Without a GPU nothing of it is asked for; a product of fake numbers says nothing of speed."""
    known = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert faster_precision(8, "cuda") == ("bfloat16" if known else "float32")
    assert faster_precision(8, "meta") == "float32"
    assert faster_precision(8) in ("float32", "bfloat16")


def test_a_training_that_diverges_says_so_and_leaves_the_last_finite_state(problem: Problem) -> None:
    config = TrainConfig(**vars(CONFIG) | {"lr": 1e18, "checkpoint_every": 1})
    reports, states = [], []

    def report(metrics: dict, state: dict | None) -> None:
        reports.append(metrics)
        states.append(copy.deepcopy(state))

    with pytest.raises(ValueError, match=r"training diverged near step \d+ \(loss \w+\); lower --lr"):
        train(problem.model(config), problem.draw, problem.scaling, config, report=report)
    assert 0 < len(states) < 40
    assert all(math.isfinite(entry["loss"]) for entry in reports)
    assert all(v.isfinite().all() for part in ("model", "ema") for v in states[-1][part].values())


def test_a_parameter_that_is_no_number_is_not_saved_before_a_loss_shows_it(problem: Problem) -> None:
    """Its step's loss was of the parameters before."""
    states = []

    def draw(step: int, num: int, rng: torch.Generator) -> Pairs:
        if step == 4:  # the last one before a checkpoint
            next(model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
        return problem.draw(step, num, rng)

    config, model = TrainConfig(**vars(CONFIG) | {"checkpoint_every": 5}), problem.model(CONFIG)
    with pytest.raises(ValueError, match=r"diverged near step 5 \(loss nan\)"):
        train(model, draw, problem.scaling, config, report=lambda metrics, state: states.append(state))
    assert states == []
