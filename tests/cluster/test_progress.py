"""What progress says of speed."""

import pytest

from cluster.progress import rate


@pytest.mark.parametrize(
    ("done", "seconds", "words"),
    [
        (830, 10, "83 runs/s"),
        (12_345, 1, "12,345 runs/s"),
        (21, 50, "0.42 runs/s"),
        (3, 1, "3 runs/s"),
        (8, 96, "12 s/run"),
        (1, 5000, "5,000 s/run"),
        (0, 9, ""),
    ],
)
def test_a_rate_is_never_nought(done: float, seconds: float, words: str) -> None:
    assert rate(done, seconds, "run") == words
