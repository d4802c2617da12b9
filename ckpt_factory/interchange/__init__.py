"""Interchange: checkpoints trained elsewhere become a zoo, and a zoo becomes a Hugging Face dataset."""

from .folder import open_folder
from .huggingface import export_dataset
from .lmdb_set import open_lmdb_set, run_directories
from .source import Progress, Run, Source, begin_import, import_unit

__all__ = [
    "Progress",
    "Run",
    "Source",
    "begin_import",
    "export_dataset",
    "import_unit",
    "open_folder",
    "open_lmdb_set",
    "run_directories",
]
