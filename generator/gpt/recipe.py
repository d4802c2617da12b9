"""How the published transformer was trained, at the size of a CPU."""

from ..model.dit import DiTConfig
from ..training.train import TrainConfig
from .config import PRESETS


def published_training(*, time_budget_s: float, batch_size: int = 32) -> TrainConfig:
    """Optimizer, rates, pairs and loss as published for MNIST, on the model of preset "digits".

    What differs: batches were 1,024 pairs, so that a core would take a few steps a minute; our average of
    parameters is short while the model is young, theirs remembered its beginning for 10,000 steps, which are
    all there are here.
    """
    size = PRESETS["digits"]
    return TrainConfig(
        model=DiTConfig(tokens="gpt", chunk=size.chunk, width=size.width, depth=size.depth, heads=size.heads),
        pairs="published",
        behaviour=0.0,
        steps=1_000_000,
        time_budget_s=time_budget_s,
        batch_size=batch_size,
        lr=4e-4,
        weight_decay=0.1,
        warmup_steps=445,  # five epochs
        clip_norm=0.75,
        ema=0.9999,
    )
