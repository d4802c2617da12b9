"""The oracle of training: one run as anyone would write it, with torch's own modules, SGD and autograd."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ckpt_factory import RunPlan, RunSettings
from ckpt_factory.initialise import initialise
from ckpt_factory.tasks import MLPClassifier
from tests.conftest import plain_mlp


def plain_data(task: MLPClassifier, run: RunSettings, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images by hand, their labels, some of them wrong, and the indices of those that are trained on."""
    pixels = torch.from_numpy(task.data.images["train"].astype(np.float32)).flatten(1)
    images = (pixels / task.data.full_scale - task.data.mean) / task.data.std
    labels = torch.from_numpy(task.data.labels["train"])
    if run.label_noise:
        wrong = torch.rand(len(labels), generator=rng) < run.label_noise
        others = (labels + torch.randint(1, task.sizes[-1], labels.shape, generator=rng)) % task.sizes[-1]
        labels = torch.where(wrong, others, labels)
    subset = torch.arange(len(labels))
    if run.data_fraction < 1:
        subset = torch.randperm(len(labels), generator=rng)[: round(run.data_fraction * len(labels))]
    return images, labels, subset


def batches(subset: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled epochs, the incomplete last batch dropped."""
    while True:
        order = subset[torch.randperm(len(subset), generator=rng)]
        yield from (batch for batch in order.split(batch_size) if len(batch) == batch_size)


def plain_training(task: MLPClassifier, plan: RunPlan, run: RunSettings) -> Tensor:
    """The checkpoints (S, D) of one run of SGD."""
    (init_rng,), (order_rng,) = plan.init_rngs([run]), plan.order_rngs([run])
    own = run.init == "default"
    zeros = torch.zeros(task.spec.D)
    start = task.init([init_rng])[0] if own else initialise(zeros, task.spec, run.init, rng=init_rng)
    net = plain_mlp(task.sizes, task.spec.unflatten(start * run.init_scale))
    optimizer = torch.optim.SGD(
        net.parameters(), lr=run.lr, momentum=run.momentum, nesterov=True, weight_decay=run.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=plan.num_steps)
    images, labels, subset = plain_data(task, run, order_rng)
    order, kept = batches(subset, run.batch_size, order_rng), []
    for step in range(plan.num_steps + 1):
        if step in plan.steps(run.run_id):
            kept.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
        index = next(order)
        p = net(images[index]).softmax(1)[torch.arange(len(index)), labels[index]]
        optimizer.zero_grad()
        (-(run.gamma + (1 - run.gamma) * p).log() / (1 - run.gamma)).mean().backward()
        optimizer.step()
        schedule.step()
    return torch.stack(kept)
