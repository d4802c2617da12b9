"""Watching what a generator makes: a film of policies side by side, each with its prompt and its return."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ckpt_factory import make
from ckpt_factory.files import check_writable
from ckpt_factory.header import check_inputs
from ckpt_factory.tasks import options
from ckpt_factory.tasks.base import seeded
from ckpt_factory.tasks.registry import spec, with_options
from ckpt_factory.zoo import sha256
from generator.artefact import MODEL, WeightGenerator
from generator.prompt import check_prompts, prompt_networks
from generator.sampling.samplers import SamplingChange
from rl_tasks.tasks import PolicyTask
from rl_tasks.watch import check_drawable, compose, play, write_film

from .command import Command
from .progress import ProgressBar, say


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What to film."""

    generator: Path = Path("runs/generator")
    """Folder of the generator of policies; of several metrics the main one is prompted, alone."""
    task: str | None = None
    """The task that it has to be of, as in `--task rl_tasks:cartpole-v0`; default whatever it is of."""
    prompt: str = ""
    """Returns wished for, with commas: 50,200,500, one policy each; default the best the zoo has seen."""
    episodes: int = 64
    """Episodes of fresh seeds that the achieved return is the mean of."""
    format: Literal["gif", "mp4"] = "gif"
    """Of the film; MP4 is smaller, a GIF is shown everywhere."""
    every: int = 4
    """Steps of the environment from one picture to the next."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    seed: int = 0
    """Seed of the initialisation, of the sampling noise, and of the episode that is shown."""
    out: Path = Path("runs/watch")
    """Folder for the film."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected a non-negative integer")
        _ = self.prompts

    @property
    def prompts(self) -> list[float]:
        try:
            return [float(each) for each in self.prompt.split(",")] if self.prompt else []
        except ValueError:
            raise ValueError(f"prompt is {self.prompt!r}; expected returns with commas: 50,200,500") from None


def watch(config: WatchConfig) -> dict[str, Any]:
    """Make one policy per prompt from the same initialisation, measure it, and film an episode of each."""
    generator, task = load(config)
    prompts = config.prompts or [generator.best_metric]
    for warning in check_prompts(generator, prompts):
        say(warning, label="warning")
    start = task.init([seeded(config.seed, 0)]).expand(len(prompts), -1)
    made = prompt_networks(
        generator,
        task,
        start,
        torch.tensor(prompts),
        rng=seeded(config.seed, 1),
    )
    achieved, std = (made.achieved[-1][f"test_{name}"].tolist() for name in ("return", "return_std"))
    captions = [
        (f"prompt {prompt:g}", f"achieved {mean:.1f} ± {spread:.0f} ({task.episodes} episodes)")
        for prompt, mean, spread in zip(prompts, achieved, std, strict=True)
    ]
    frames, longest = [], task.setting.env.max_steps // config.every + 2
    with ProgressBar("film", 100, "%") as bar:
        for moment in play(task, made.theta.numpy(), every=config.every, seed=config.seed):
            frames.append(compose(moment, captions))
            bar.update(100 * len(frames) / longest, f"{len(frames)} pictures")
        bar.update(100, f"{len(frames)} pictures, all episodes have ended")
    film = config.out / f"policies.{config.format}"
    write_film(frames + frames[-1:] * 15, film)
    say(f"film: {film}")
    policies = [
        {"prompt": prompt, "achieved": mean, "std_over_episodes": spread, "shown_episode": shown}
        for prompt, mean, spread, shown in zip(prompts, achieved, std, moment.returns.tolist(), strict=True)
    ]
    rows = {
        f"prompt {each['prompt']:g}": f"{each['achieved']:.4g} ± {each['std_over_episodes']:.3g} over "
        f"{task.episodes} episodes; the one in the film {each['shown_episode']:.4g}"
        for each in policies
    }
    return {
        "task": generator.origin.task,
        "film": str(film),
        "evaluated": {"model": sha256(config.generator / MODEL)},
        "pictures": len(frames),
        "start_test_return": float(made.start["test_return"][0]),
        "policies": policies,
    } | rows


def load(config: WatchConfig) -> tuple[WeightGenerator, PolicyTask]:
    """The generator, and its task with as many episodes as the film's captions are to say.

    Raises:
        ValueError: another task than asked for, or one that has no policies to watch.
    """
    generator = WeightGenerator.load(config.generator).with_sampling(config.sampling)
    name = generator.origin.task
    if config.task is not None and not _is_of(name, config.task):
        raise ValueError(f"the generator in {config.generator} is for {name!r}, not for {config.task!r}")
    task = make(name)
    if not isinstance(task, PolicyTask):
        raise ValueError(f"{name!r} has no policies to watch; this is for tasks whose metric is a return")
    task = make(with_options(name, episodes=config.episodes))
    assert isinstance(task, PolicyTask)
    cure = "train a generator on a zoo of the environment as it is now"
    check_inputs(task, generator.origin.inputs, "the generator was trained on", cure)
    return generator, task


def _is_of(name: str, asked: str) -> bool:
    """The task of that name, and the options that are asked for are what it has or has by default."""
    if asked.partition("?")[0] != name.partition("?")[0]:
        return False
    (_, own), (_, wanted) = options.split(with_options(name)), options.split(with_options(asked))
    defaults = inspect.signature(spec(name).entry_point).parameters
    return all(own.get(key, str(defaults[key].default)) == value for key, value in wanted.items())


def _check(config: WatchConfig) -> None:
    _, task = load(config)
    check_drawable(task.setting)
    check_writable(config.out)


COMMAND = Command(
    WatchConfig,
    lambda config: (watch(config), config.out, 0),
    check=_check,
    starts_ray=False,
    examples="theta watch --task rl_tasks:cartpole-v0 --prompt 50,200,500\n"
    "theta watch --generator runs/generator-pendulum --prompt=-1000,-400,-150 --format mp4",
)
