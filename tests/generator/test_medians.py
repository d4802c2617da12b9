"""Medians and quartiles."""

import math

import torch

from generator.medians import median, quartiles


def test_an_even_count_has_the_mean_of_the_two_in_the_middle() -> None:
    values = torch.tensor([[4.0, 1.0, 3.0, 9.0], [1.0, 1.0, 2.0, 7.0]])
    assert median(values).tolist() == [3.5, 1.5]
    assert median(values, 0).tolist() == [2.5, 1.0, 2.5, 8.0]
    assert float(median(values[0, :3])) == 3.0


def test_what_is_never_reached_counts_and_what_is_not_a_number_does_not() -> None:
    assert float(median(torch.tensor([math.inf, 1.0, math.inf]))) == math.inf
    assert float(median(torch.tensor([math.inf, 1.0, 2.0]))) == 2.0
    assert float(median(torch.tensor([1.0, math.inf]))) == math.inf
    assert float(median(torch.tensor([math.nan, 5.0, 2.0, 1.0]))) == 2.0
    assert quartiles(torch.tensor([3.0, 1.0, math.inf, 2.0, 5.0])) == [2.0, 5.0]
