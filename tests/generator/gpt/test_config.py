"""How networks are cut into tokens, by every policy, and what a preset may not say."""

import jaxtyping
import pytest

from generator.gpt import PRESETS, GptConfig, token_sizes

INPUTS = [(5, 2), (5, 2), (3,)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("chunk", (4, 4, 4, 4, 1)),
        ("chunk_within_input", (4, 3, 4, 3, 3)),
        ("chunk_within_layer", (4, 1, 2, 4, 1, 2, 3)),
        ("layer_by_layer", (5, 2, 5, 2, 3)),
    ],
)
def test_tokens_cross_what_their_policy_lets_them_cross(policy: str, expected: tuple[int, ...]) -> None:
    assert token_sizes(INPUTS, policy, 4) == expected
    assert sum(expected) == 17


@pytest.mark.parametrize(
    ("preset", "of_a_network", "total"),
    [
        ("mnist_loss", (1000,) * 7 + (840, 10, 100, 10), 26),
        ("cifar10_loss", (432,) + (576,) * 8 + (320, 10), 26),
        ("cartpole", (1, 128, 32, 1024, 32, 32, 1), 18),
        ("digits", (1000, 24, 16, 160, 10), 14),
    ],
)
def test_presets_have_the_published_tokens(preset: str, of_a_network: tuple[int, ...], total: int) -> None:
    config = PRESETS[preset]
    assert config.output_tokens == of_a_network
    assert config.input_tokens == of_a_network * 2 + (257,) * 4
    assert len(config.input_tokens) == total


def test_the_difference_of_metrics_alone_saves_two_tokens() -> None:
    config = GptConfig(sizes=(5, 2), absolute_conditioning=False)
    assert config.input_tokens == (5, 2, 5, 2, 257, 257)


def test_a_scalar_is_one_token_unless_tokens_cross_inputs() -> None:
    config = GptConfig(sizes=(100, 30), chunk=64)
    assert config.input_tokens == (64, 36, 30) * 2 + (257,) * 4
    crossing = GptConfig(sizes=(100, 30), chunk=64, split="chunk")
    assert crossing.input_tokens == (64,) * 20 + (8,)
    assert crossing.output_tokens == (64, 64, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split": "layers"}, "split is 'layers'; expected one of chunk, chunk_within_input"),
        ({"chunk": 0}, "chunk is 0; expected at least 1"),
        ({"encoder_depth": 0}, "encoder_depth is 0"),
        ({"sizes": ()}, r"sizes is \(\); expected the element counts"),
        ({"sizes": (3, 0)}, r"sizes is \(3, 0\)"),
        ({"width": 60}, "width is 60; expected a multiple of heads = 8"),
    ],
)
def test_what_makes_no_model_is_refused(fields: dict, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of the tests
    with pytest.raises(ValueError, match=words):
        GptConfig(**{"sizes": (3,)} | fields)
