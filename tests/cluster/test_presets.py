"""What the presets promise of the zoos that they make."""

from itertools import product

from cluster.factory import diverse


def test_held_out_runs_of_the_diverse_preset_have_every_optimizer_and_batch_size() -> None:
    config = diverse()
    plan, num_held_out = config.plan, config.num_runs // 10
    held_out = plan.runs(range(config.num_runs - num_held_out, config.num_runs))
    combinations = {(run.optimizer, run.batch_size) for run in held_out}
    assert combinations == set(product(plan.optimizer, plan.batch_size))
