"""Whether networks are what they were asked for: prompts in their own order against all others."""

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory.tasks.base import seeded

from ..evaluation.evaluate import prompt_alignment
from ..medians import median
from .frontier import DRAWS


def hearing(prompts: Float[Tensor, "N P"], observed: Float[Tensor, "N P"], *, seed: int) -> dict[str, float]:
    """Prompt alignment over N starts, the same with the prompts of each start shuffled, and the gain.

    They are shuffled by every turn, so that each prompt stands once for each network of a start. Who is deaf
    gains nothing from the true ones but by chance, whatever it makes; who obeys gains 2 P / (P - 1), as that
    times the slope of a regression of what was achieved on prompts. Of the gain it is the median of starts
    and the lower end of its 95 % bootstrap interval; a start with a metric that is not finite gains nothing.
    """
    turns = range(1, prompts.shape[1])
    true = prompt_alignment(prompts, observed)
    shuffled = torch.stack([prompt_alignment(prompts.roll(k, 1), observed) for k in turns]).mean(0)
    gain = (true - shuffled).double()
    gain = gain.where(gain.isfinite(), 0.0)
    drawn = torch.randint(len(gain), (DRAWS, len(gain)), generator=seeded(seed, 1))
    return {
        "prompt_alignment": float(true.mean()),
        "shuffled_prompt_alignment": float(shuffled.mean()),
        "prompt_gain": float(median(gain)),
        "prompt_gain_low": float(median(gain[drawn], 1).quantile(0.025, interpolation="nearest")),
    }
