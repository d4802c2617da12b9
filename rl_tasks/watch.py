"""Films of policies: one episode of each, side by side, with what was prompted and what was achieved."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from ckpt_factory.files import atomic_path

from .algorithm import Setting
from .gym_envs import GymCopies
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
    env = _drawn(setting)
    try:
        observations = env.reset(np.full(len(theta), seed))
        pictures = [_picture(env, k) for k in range(len(theta))]
        returns, over = np.zeros(len(theta), np.float32), [False] * len(theta)
        layers = setting.net.layers(setting.net.params(theta))
        log_std = theta[:, : setting.head.outputs] if setting.head.continuous else None
        rng = np.random.default_rng(seed)
        for step in range(setting.env.max_steps):
            if step % every == 0 or all(over):
                yield Moment(list(pictures), returns.copy(), list(over))
            if all(over):
                return
            outputs = forward(layers, (observations * setting.scale)[:, None], setting.net.act)[-1]
            noise = setting.head.noise(rng.random(outputs.shape))
            actions = setting.head.to_env(setting.head.act(outputs, log_std, noise))
            observations, reward, ended, cut = env.step(actions)
            for k in range(len(theta)):
                if not over[k]:
                    returns[k] += reward[k]
                    over[k] = bool(ended[k] or cut[k])
                    if (over[k] or (step + 1) % every == 0) and not env.broken[k]:
                        pictures[k] = _picture(env, k)
        yield Moment(list(pictures), returns.copy(), list(over))
    finally:
        env.close()


def check_drawable(setting: Setting) -> None:
    """Draw one picture, to say before anything is made what will not be filmed.

    Raises:
        ValueError: the environment has no pictures, or what draws them is missing.
    """
    env = _drawn(setting)
    try:
        env.reset(np.zeros(1, np.int64))
        _picture(env, 0)
    finally:
        env.close()


def _drawn(setting: Setting) -> GymCopies:
    """Copies that draw themselves; Gymnasium's own, also of what we step as arrays."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures, no window
    return GymCopies(setting.env_id, setting.env.max_steps, render_mode="rgb_array")


def _picture(env: GymCopies, k: int) -> ndarray:
    if env.broken[k]:
        raise ValueError(f"{env.env_id} cannot be drawn ({env.why_broken})")
    try:
        drawn = env.picture(k)
    except Exception as error:  # no display, no library, or whatever somebody's environment raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        cure = (
            "without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            if env.uses_mujoco
            else "`pip install '.[rl]'` has what Gymnasium's draw with"
        )
        raise ValueError(f"{env.env_id} cannot be drawn ({why}); {cure}") from None
    return np.asarray(Image.fromarray(drawn).resize(PANEL, Image.Resampling.LANCZOS))


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
