"""Losses of classifiers over stacks: cross-entropy, and TaiLr, which trusts unlikely labels less; and how far
the answers of networks are apart."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TAILR_REST = 1e-6
"""1 - gamma is taken to be at least this: the loss then is within 5e-7 of its limit, 1 - p_y."""


def cross_entropy(logits: Float[Tensor, "K C B"], labels: Int[Tensor, "K B"]) -> Float[Tensor, "K B"]:
    """-log p_y of each image."""
    return -logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)


def tailr(
    logits: Float[Tensor, "K C B"], labels: Int[Tensor, "K B"], gamma: Float[Tensor, " K"]
) -> Float[Tensor, "K B"]:
    """TaiLr (Ji et al. 2023, eq. 9): -log(gamma + (1 - gamma) p_y) / (1 - gamma), 0 <= gamma < 1.

    gamma = 0 is cross-entropy; towards 1 it becomes 1 - p_y, a surrogate of the error rate.
    """
    gamma = gamma.unsqueeze(1)
    log_p = -cross_entropy(logits, labels)
    low, rest = gamma.clamp_max(0.5), (1 - gamma).clamp(TAILR_REST, 0.5)
    by_logarithms = -torch.logaddexp(low.log(), (1 - low).log() + log_p) / (1 - low)
    # The same as -log(1 - (1 - gamma)(1 - p)) / (1 - gamma), whose digits are not lost as gamma nears 1.
    by_error = -torch.log1p(rest * torch.expm1(log_p)) / rest
    return torch.where(gamma <= 0.5, by_logarithms, by_error)


def tailr_of_network(
    outputs: Float[Tensor, "B C"], labels: Int[Tensor, " B"], gamma: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The mean of one network's TaiLr losses, for its outputs as modules give them."""
    return tailr(outputs.T.unsqueeze(0), labels.unsqueeze(0), gamma.unsqueeze(0)).mean()


def tailr_weight(p: Float[Tensor, "K B"], gamma: Float[Tensor, " K"]) -> Float[Tensor, "K B"]:
    """TaiLr's other form: its gradient is this weight times that of cross-entropy (ibid., eq. 10).

    w = p / (gamma + (1 - gamma) p), taken as a constant: 1 where p is 1, near 0 where the label is unlikely.
    """
    gamma = gamma.unsqueeze(1)
    # At gamma = 0 the weight is 1 even where p has underflowed to 0.
    return torch.where(gamma == 0, 1.0, p / (gamma + (1 - gamma) * p))


def kl_divergence(
    logits: Float[Tensor, "K B C *rest"], goal: Float[Tensor, "K B C *rest"]
) -> Float[Tensor, " K"]:
    """KL(goal || logits) of the probabilities of classes, in nats, the mean over the rest."""
    wanted, found = goal.log_softmax(2), logits.log_softmax(2)
    return (wanted.exp() * (wanted - found)).sum(2).flatten(1).mean(1)


def relative_error(
    outputs: Float[Tensor, "K B *rest"], goal: Float[Tensor, "K B *rest"]
) -> Float[Tensor, " K"]:
    """Mean squared difference of outputs over the mean square of the goal's about their mean."""
    spread = (goal - goal.mean(1, keepdim=True)).flatten(1).square().mean(1)
    return (outputs - goal).flatten(1).square().mean(1) / spread.clamp_min(1e-12)
