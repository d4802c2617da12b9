"""Hypothesis without a clock: a busy machine may take its time, and every run tries the same examples."""

from hypothesis import settings

settings.register_profile("thetaforge", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("thetaforge")
