"""The published weight transformer (Peebles et al. 2022), as it was released, its faults included."""

from .config import PRESETS, GptConfig, token_sizes
from .model import Gpt

__all__ = ["PRESETS", "Gpt", "GptConfig", "token_sizes"]
