"""Files that are written whole: their encoding is UTF-8, whatever the machine's locale."""

import os
import subprocess
import sys
from pathlib import Path

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
