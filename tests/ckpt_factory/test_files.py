"""Files that are written whole: UTF-8, whatever the machine's locale, and with the mode of any new file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ckpt_factory import files


def test_text_is_utf8_where_the_locale_knows_ascii_alone(tmp_path: Path) -> None:
    code = "import pathlib, runpy, sys; write_text = runpy.run_path(sys.argv[1])['write_text']; "
    code += "write_text(pathlib.Path(sys.argv[2]), '\\u03b8 \\u00b1 1')"
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code, files.__file__, tmp_path / "report.html"],
        env=dict(os.environ) | ascii_alone,
        check=True,
    )
    assert (tmp_path / "report.html").read_bytes().decode() == "θ ± 1"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_tensors_tables_and_text_get_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_tensors(tmp_path / "networks.safetensors", {"theta": torch.ones(2, 3)})
        files.write_text(tmp_path / "result.json", "{}")
        with files.atomic_path(tmp_path / "shard.parquet") as temporary:
            pq.write_table(pa.table({"step": [0, 1]}), temporary)
    finally:
        os.umask(before)
    assert {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.iterdir()
    } == dict.fromkeys(("networks.safetensors", "result.json", "shard.parquet"), oct(0o666 & ~umask))
