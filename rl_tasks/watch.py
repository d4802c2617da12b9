"""Films of policies: one episode of each, side by side, with what was prompted and what was achieved."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from ckpt_factory.files import atomic_path

from .policy import forward
from .tasks import PolicyTask

PANEL = (300, 200)
"""Pixels of one policy's picture."""
CAPTION = 54
"""Pixels of the text above it."""
INK, MUTED, PAPER = "#1b2130", "#5b6475", "#ffffff"
FRAME_MS = 80
SUFFIXES = (".gif", ".mp4")


class Moment(NamedTuple):
    """What is seen at one step of all policies' episodes."""

    pictures: list[ndarray]
    """(height, width, 3) each, of the episode's last step where it is over."""
    returns: Float32[ndarray, " K"]
    over: list[bool]


def play(
    task: PolicyTask, theta: Float32[ndarray, "K D"], *, every: int = 4, seed: int = 0
) -> Iterator[Moment]:
    """One episode of each policy with sampled actions, all from the same start; every so-many-th step.

    Raises:
        ValueError: the environment cannot be rendered.
    """
    setting = task.setting
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures, no window
    try:
        envs = [gymnasium.make(setting.env_id, render_mode="rgb_array") for _ in theta]
        observations = np.stack([env.reset(seed=seed)[0] for env in envs]).astype(np.float32)
        pictures = [picture_of(env) for env in envs]
    except (DependencyNotInstalled, ImportError) as error:
        raise ValueError(f"{setting.env_id} cannot be drawn ({error}); `pip install '.[rl]'`") from None
    returns, over = np.zeros(len(theta), np.float32), [False] * len(envs)
    layers = setting.net.layers(setting.net.params(theta))
    log_std = theta[:, : setting.head.outputs] if setting.head.continuous else None
    rng = np.random.default_rng(seed)
    try:
        for step in range(setting.env.max_steps):
            if step % every == 0 or all(over):
                yield Moment(list(pictures), returns.copy(), list(over))
            if all(over):
                return
            outputs = forward(layers, (observations * setting.scale)[:, None], setting.net.act)[-1]
            noise = setting.head.noise(rng.random(outputs.shape))
            actions = setting.head.to_env(setting.head.act(outputs, log_std, noise))
            for k, env in enumerate(envs):
                if not over[k]:
                    seen, reward, ended, cut, _ = env.step(actions[k])
                    observations[k], returns[k] = seen, returns[k] + reward
                    over[k] = bool(ended or cut)
                    if over[k] or (step + 1) % every == 0:
                        pictures[k] = picture_of(env)
        yield Moment(list(pictures), returns.copy(), list(over))
    finally:
        for env in envs:
            env.close()


def picture_of(env: gymnasium.Env) -> ndarray:
    return np.asarray(Image.fromarray(np.asarray(env.render())).resize(PANEL, Image.Resampling.LANCZOS))


def compose(moment: Moment, captions: Sequence[tuple[str, str]]) -> Image.Image:
    """One frame: the policies side by side, each under its caption and the return of its episode so far."""
    width, height = PANEL
    frame = Image.new("RGB", (width * len(moment.pictures), height + CAPTION), PAPER)
    draw = ImageDraw.Draw(frame)
    for k, (picture, (first, second)) in enumerate(zip(moment.pictures, captions, strict=True)):
        shown = Image.fromarray(picture)
        if moment.over[k]:
            shown = Image.blend(shown, Image.new("RGB", PANEL, PAPER), 0.5)
        frame.paste(shown, (k * width, CAPTION))
        state = "ended at" if moment.over[k] else "so far"
        draw.text((k * width + 10, 5), first, INK, _font(15))
        draw.text((k * width + 10, 25), second, MUTED, _font(12))
        draw.text(
            (k * width + 10, CAPTION + 6), f"this episode: {state} {moment.returns[k]:.0f}", INK, _font(12)
        )
    return frame


def write_film(frames: Sequence[Image.Image], path: Path) -> None:
    """A GIF that repeats, or an MP4 by the path's suffix; it appears whole or not at all.

    Raises:
        ValueError: another suffix, or no encoder for MP4.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".gif":
            few = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
            few[0].save(temporary, "GIF", save_all=True, append_images=few[1:], duration=FRAME_MS, loop=0)
        elif path.suffix == ".mp4":
            _write_mp4(frames, temporary)
        else:
            raise ValueError(f"a film is {' or '.join(SUFFIXES)}, got {path.name!r}")


def _write_mp4(frames: Sequence[Image.Image], path: Path) -> None:
    try:
        from imageio_ffmpeg import write_frames  # noqa: PLC0415  an extra  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("MP4 needs an encoder: `pip install '.[rl]'`, or give a .gif") from None
    size = frames[0].size
    writer = write_frames(
        str(path),
        size,
        fps=round(1000 / FRAME_MS),
        codec="libx264",
        macro_block_size=2,
        output_params=["-f", "mp4"],
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(np.asarray(frame)))
    writer.close()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
