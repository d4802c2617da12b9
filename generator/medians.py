"""Middles of samples, also of those with infinite numbers, like steps to what is never reached."""

from jaxtyping import Float
from torch import Tensor


def median(values: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """The middle number along a dimension, of an even count the mean of the two; NaN is left out.

    Not torch's, which of two takes the lower.
    """
    few, many = (values.float().nanquantile(0.5, dim, interpolation=side) for side in ("lower", "higher"))
    return (few + many) / 2


def quartiles(values: Float[Tensor, " N"]) -> list[float]:
    """The value that a quarter, and that three quarters are at or below."""
    ordered = values.sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in (0.25, 0.75)]
