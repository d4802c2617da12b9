"""The Parquet schema of a zoo: one place, versioned, with the task and the ParamSpec in its metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Shaped
from torch import Tensor

from .spec import ParamSpec

SCHEMA_VERSION = 2

OF_LABELS = {
    "label_noise": pa.float64(),
    "data_fraction": pa.float64(),
    "loss": pa.string(),
    "gamma": pa.float64(),
}
"""Settings of a run that are about labelled data; null where a task has no use for them."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What theta may be stored as. 16 bit goes into fixed-size binary: half-float lists are slow in Parquet."""


def checkpoint_schema(task_id: str, spec: ParamSpec, metrics: Sequence[str], dtype: str) -> pa.Schema:
    """One row per checkpoint: run_id, step, its metrics, theta."""
    theta = pa.fixed_shape_tensor(pa.float32(), (spec.D,)) if dtype == "float32" else pa.binary(2 * spec.D)
    fields = [pa.field("run_id", pa.int64(), nullable=False), pa.field("step", pa.int32(), nullable=False)]
    fields += [pa.field(name, pa.float32(), nullable=False) for name in metrics]
    fields.append(pa.field("theta", theta, nullable=False))
    return pa.schema(fields, metadata=_metadata(task_id, spec, dtype))


def checkpoint_table(
    schema: pa.Schema,
    run_ids: np.ndarray,
    steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    theta: Shaped[Tensor, "N D"],
) -> pa.Table:
    """Rows of a shard; theta goes in without a copy."""
    field = schema.field("theta")
    if pa.types.is_fixed_size_binary(field.type):
        column = pa.FixedSizeBinaryArray.from_buffers(
            field.type, len(theta), [None, pa.py_buffer(theta.contiguous().view(torch.int16).numpy())]
        )
    else:
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(theta.contiguous().numpy())
    columns = {"run_id": run_ids, "step": steps.astype(np.int32), **metrics, "theta": column}
    return pa.Table.from_arrays(
        [pa.array(columns[f.name], f.type) if f.name != "theta" else column for f in schema], schema=schema
    )


def theta_tensor(table: pa.Table) -> Shaped[Tensor, "N D"]:
    """The theta column of a shard's rows, in the dtype that it is stored in."""
    column = table["theta"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if pa.types.is_fixed_size_binary(column.type):
        dtype = DTYPES[table.schema.metadata[b"thetaforge.dtype"].decode()]
        width = column.type.byte_width
        bits = np.frombuffer(column.buffers()[1], np.int16)[column.offset * width // 2 :][
            : len(column) * width // 2
        ]
        return torch.from_numpy(bits.copy()).view(dtype).view(len(column), -1)
    return torch.from_numpy(column.to_numpy_ndarray().copy())


def runs_schema(
    task_id: str, spec: ParamSpec, settings: Mapping[str, Any], metrics: Sequence[str]
) -> pa.Schema:
    """One row per run: its settings, how it ended, and its last metrics."""
    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    fields = [
        pa.field(name, OF_LABELS[name])
        if value is None
        else pa.field(name, arrow[type(value)], nullable=False)
        for name, value in settings.items()
    ]
    fields.append(pa.field("status", pa.string(), nullable=False))
    fields += [pa.field(f"final_{name}", pa.float32(), nullable=False) for name in metrics]
    return pa.schema(fields, metadata=_metadata(task_id, spec, "float32"))


def _metadata(task_id: str, spec: ParamSpec, dtype: str) -> dict[str, str]:
    return {
        "thetaforge.schema_version": str(SCHEMA_VERSION),
        "thetaforge.task": task_id,
        "thetaforge.param_spec": spec.to_json(),
        "thetaforge.dtype": dtype,
    }
