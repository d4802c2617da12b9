"""AdamW for stacks: the update of torch.optim.AdamW, run by run."""

import copy

import pytest
import torch

from ckpt_factory.optim import AdamW

from .optim_runs import STEPS, K, run, start

# The corrections of the moments are applied in another order: a few units of float32 rounding.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_stacked_adamw_equals_torch_adamw(betas: tuple[float, float], weight_decay: float) -> None:
    params = start()
    run(AdamW(params, lr=0.1, betas=betas, weight_decay=weight_decay), params)
    for k in range(K):
        alone = [param[k].clone() for param in start()]
        run(torch.optim.AdamW(alone, lr=0.1, betas=betas, weight_decay=weight_decay), alone, part=k)
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_every_run_has_its_own_settings() -> None:
    lr = torch.tensor([0.01, 0.1, 0.3, 0.0])
    weight_decay = torch.tensor([0.0, 0.1, 0.01, 0.5])
    beta1, beta2 = torch.tensor([0.9, 0.0, 0.5, 0.9]), torch.tensor([0.999, 0.9, 0.99, 0.95])
    params = start()
    run(AdamW(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay), params)
    for k in range(K):
        alone = [param[k].clone() for param in start()]
        betas = (float(beta1[k]), float(beta2[k]))
        single = torch.optim.AdamW(alone, float(lr[k]), betas, weight_decay=float(weight_decay[k]))
        run(single, alone, part=k)
        # beta2 as a float32 tensor is .999 to seven digits, and 1 - beta2 to four: 3e-5 on an update of lr
        torch.testing.assert_close([param[k] for param in params], alone, rtol=1e-4, atol=1e-4)


def test_a_state_of_torch_adamw_goes_on_here() -> None:
    """The keys of the state are torch's own."""
    alone = [param[0].clone() for param in start()]
    theirs = torch.optim.AdamW(alone, lr=0.1, weight_decay=0.1)
    run(theirs, alone, range(5), part=0)
    here = [param.clone() for param in alone]
    ours = AdamW(here, stacked=False)
    state = copy.deepcopy(theirs.state_dict()["state"])  # or both moved the same tensors
    ours.load_state_dict({"state": state, "param_groups": ours.state_dict()["param_groups"]})
    ours.param_groups[0] |= {"lr": 0.1, "weight_decay": 0.1}
    run(ours, here, range(5, STEPS), part=0)
    run(theirs, alone, range(5, STEPS), part=0)
    torch.testing.assert_close(here, alone, **TOLERANCE)
