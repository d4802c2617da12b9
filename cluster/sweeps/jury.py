"""What trained generators are judged by: one update of held-out initialisations."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation.evaluate import (
    finished_runs,
    held_out_runs,
    prompt_alignment,
    prompt_grid,
    training_checkpoints,
)
from generator.medians import median

from ..tasks import task_of_zoo
from ..train_config import GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class Jury:
    """The same initialisations and prompts for all generators of a zoo, whatever they were trained on."""

    zoo: Path
    data_root: Path | None
    first: int
    """Runs with smaller ids are training runs of some generator."""
    best: float
    """The best prompt: the best metric of all training runs, whatever share of them a generator sees."""
    num_networks: int
    num_prompts: int
    split: Literal["validation", "test"] = "test"
    """On which split, and so from which runs: what is reported on the test split and from the first held-out
    runs, as evaluations are; what is chosen by on the validation split and from the last ones."""

    @classmethod
    def of(
        cls,
        config: GeneratorConfig,
        zoo: Zoo,
        *,
        num_networks: int,
        num_prompts: int,
        split: Literal["validation", "test"] = "test",
    ) -> "Jury":
        """For trainings that hold out what `config` does."""
        first = zoo.header.num_training_runs(config.held_out)
        return cls(
            zoo=config.zoo,
            data_root=config.data_root,
            first=first,
            best=best_of(zoo, first),
            num_networks=num_networks,
            num_prompts=num_prompts,
            split=split,
        )

    def judged(self, folder: Path, *, seed: int = 0) -> dict[str, Any]:
        """Alignment, one update and cost of the generator in a folder; the seed is of the sampling noise."""
        generator, zoo = WeightGenerator.load(folder), Zoo.open(self.zoo)
        starts = self._starts(zoo, generator)
        task = task_of_zoo(zoo, self.data_root)
        grid = prompt_grid(generator, task, starts, seed=seed, num_prompts=self.num_prompts, best=self.best)
        alignment = prompt_alignment(grid["prompts"], grid[f"{self.split}_{generator.metric}"])
        one = {key: float(grid[key][:, 0].mean()) for key in grid if key.startswith(f"{self.split}_")}
        metric = task.evaluate(starts, "validation")[generator.metric]
        began = time.process_time()
        generator.update(starts, metric, self.best, rng=seeded(seed))
        return {
            "alignment": float(alignment.mean()),
            "alignment_median": float(median(alignment.flatten())),
            "one_update": one,
            "evaluations": generator.sampling.steps,
            "networks_per_cpu_s": len(starts) / max(time.process_time() - began, 1e-9),
        }

    def _starts(self, zoo: Zoo, generator: WeightGenerator) -> Float[Tensor, "N D"]:
        """The initialisations that all generators update."""
        if self.split == "validation":
            return finished_runs(zoo, self.first, self.num_networks, from_end=True).theta[:, 0]
        all_but_held_out = replace(generator, origin=replace(generator.origin, num_training_runs=self.first))
        return held_out_runs(zoo, all_but_held_out, self.num_networks).theta[:, 0]


def best_of(zoo: Zoo, num_training_runs: int) -> float:
    """The best validation metric of the training runs of a zoo."""
    seen = training_checkpoints(zoo, num_training_runs)[zoo.header.prompted]
    return float(seen.min() if zoo.header.objective == "min" else seen.max())
