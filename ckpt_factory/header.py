"""ZooHeader: what a zoo holds and by which recipe, fixed when it is begun: zoo.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .plan import RunPlan, RunSettings
from .schema import DTYPES, OF_LABELS, SCHEMA_VERSION
from .spec import ParamSpec
from .tasks.base import SPLITS, Task


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """What is known of a run that was trained elsewhere."""

    run_id: int
    order_id: int


@dataclass(frozen=True, kw_only=True)
class Imported:
    """In the place of a RunPlan: runs that were trained elsewhere."""

    source: str
    """Where they come from."""
    num_checkpoints: int
    """Checkpoints of a run."""
    group_size: int = 1
    """Runs in sequence that belong together, and are held out together."""
    measured: bool = False
    """Whether the metrics were measured again by the task; otherwise they are what the source says."""
    digest: str = ""
    """Hash of the names, steps, metrics and sizes of all runs in their order: what the source held."""

    def __post_init__(self) -> None:
        for name in ("num_checkpoints", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")

    def run(self, run_id: int) -> ImportedRun:
        return ImportedRun(run_id=run_id, order_id=run_id // self.group_size)


def columns_of(task: Task) -> tuple[str, ...]:
    """The columns of metrics that a task measures: validation_loss, ..."""
    return tuple(f"{split}_{name}" for split in SPLITS for name in task.metrics)


def check_inputs(task: Task, inputs: str, of: str, cure: str = "give that data with --data-root") -> None:
    """Refuse a task with other data than the inputs "the zoo was made on", as far as their normalisation
    tells; inputs that nobody noted are any.

    Raises:
        ValueError: its networks' inputs are made in another way.
    """
    if inputs and task.inputs != inputs:
        raise ValueError(
            f"this data is not what {of}: its inputs are {inputs}, here they are {task.inputs or 'unknown'}; "
            f"{cure}"
        )


@dataclass(frozen=True, kw_only=True)
class ZooHeader:
    """What a zoo holds, fixed when it is begun: zoo.json."""

    task: str
    spec: ParamSpec
    metrics: tuple[str, ...]
    """Columns of metrics: validation_loss, ..."""
    prompted: str
    """The column that prompts are about."""
    objective: str
    plan: RunPlan | Imported
    """The recipe."""
    num_runs: int
    stack_size: int
    """Runs per unit of work, which is one stack and one shard."""
    dtype: str = "float32"
    inputs: str = ""
    """How a network's input is made from raw data."""
    unused: tuple[str, ...] = ()
    """Settings of a run that mean nothing to the task: null in the runs table."""

    def __post_init__(self) -> None:
        for name, kind in (("task", str), ("prompted", str), ("num_runs", int), ("stack_size", int)):
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {kind.__name__}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if not set(self.unused) <= set(OF_LABELS):
            raise ValueError(f"unused is {self.unused}; expected some of {', '.join(OF_LABELS)}")
        group = self.plan.group_size
        for name in ("num_runs", "stack_size"):
            value = getattr(self, name)
            if value < 1 or value % group:
                nearest = max(1, round(value / group)) * group
                raise ValueError(
                    f"{name} is {value}; expected a positive multiple of group_size {group}, like {nearest}, "
                    "since runs of a group are trained together and share their mini-batches "
                    "(--group-size 1: each has its own, which is slower)"
                )

    @classmethod
    def of_task(cls, task: Task, plan: RunPlan, *, num_runs: int, stack_size: int, dtype: str) -> "ZooHeader":
        return cls(
            task=task.id,
            spec=task.spec,
            metrics=columns_of(task),
            prompted=f"validation_{task.metric}",
            objective=task.objective,
            plan=plan,
            num_runs=num_runs,
            stack_size=stack_size,
            dtype=dtype,
            inputs=task.inputs,
            unused=task.unused,
        )

    @property
    def runs_plan(self) -> RunPlan:
        """The plan by which its runs can be made.

        Raises:
            ValueError: they were imported.
        """
        if isinstance(self.plan, Imported):
            raise ValueError(f"this zoo was imported from {self.plan.source}: its runs cannot be made anew")
        return self.plan

    @property
    def remeasurable(self) -> bool:
        """Whether the metrics are the task's own; of imported zoos they may be what the source says."""
        return not isinstance(self.plan, Imported) or self.plan.measured

    def check_inputs(self, task: Task) -> None:
        """Refuse a task with other data than the zoo was made on, as `check_inputs` of this module."""
        check_inputs(task, self.inputs, "the zoo was made on")

    def check_prompted(self, task: Task) -> None:
        """Refuse prompts about what the task cannot measure, a source's own metric: none could be answered.

        Raises:
            ValueError: the prompted column is none of the task's.
        """
        if self.prompted not in columns_of(task):
            raise ValueError(
                f"the zoo was imported to be prompted with {self.prompted!r}, which {self.task!r} does not "
                f"measure; import it again with --evaluate, or --prompted {' or '.join(columns_of(task))}"
            )

    @property
    def maker(self) -> str:
        """The command that makes or completes such a zoo."""
        return "theta import" if isinstance(self.plan, Imported) else "theta make"

    def unit_settings(self, unit: int, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Every hyper-parameter of a unit's runs, drawn or shared, None where the task has no use for it; of
        imported runs the names they had."""
        runs = [
            run.columns() if isinstance(run, RunSettings) else asdict(run) for run in self.unit_runs(unit)
        ]
        if isinstance(self.plan, Imported):
            names = names or [""] * len(runs)
            source = {"source": self.plan.source}
            return [run | source | {"name": name} for run, name in zip(runs, names, strict=True)]
        shared = ("seed", "num_steps", "schedule", "schedule_every", "precision")
        same = {name: getattr(self.plan, name) for name in shared} | dict.fromkeys(self.unused)
        return [run | same for run in runs]

    @property
    def num_units(self) -> int:
        return -(-self.num_runs // self.stack_size)

    def unit_runs(self, unit: int) -> list[RunSettings | ImportedRun]:
        return [self.plan.run(run_id) for run_id in self.run_ids(unit)]

    def run_ids(self, unit: int) -> range:
        first = unit * self.stack_size
        return range(first, min(first + self.stack_size, self.num_runs))

    def num_training_runs(self, held_out: float) -> int:
        """How many runs to train on: the first ones. The last `held_out` of the groups are never touched."""
        groups = self.num_runs // self.plan.group_size
        return (groups - max(1, round(held_out * groups))) * self.plan.group_size

    def to_json(self) -> str:
        plan = asdict(self.plan)
        if not plan.get("hyper"):
            plan.pop("hyper", None)  # headers from before there were any remain what they were, to the byte
        fields = (
            asdict(self)
            | {"plan": plan}
            | {"spec": json.loads(self.spec.to_json()), "schema_version": SCHEMA_VERSION}
        )
        if not fields["unused"]:
            del fields["unused"]  # as above
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ZooHeader":
        fields = json.loads(text)
        del fields["schema_version"]
        plan: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in fields.pop("plan").items()
        }
        if "hyper" in plan:
            plan["hyper"] = {name: tuple(bounds) for name, bounds in plan["hyper"].items()}
        recipe = Imported(**plan) if "source" in plan else RunPlan(**plan)
        spec = ParamSpec.from_json(json.dumps(fields.pop("spec")))
        names = {name: tuple(fields.get(name, ())) for name in ("metrics", "unused")}
        return cls(**fields | names | {"plan": recipe, "spec": spec})
