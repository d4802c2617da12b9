"""The registry: ids that resolve anywhere, and answers to typing errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_factory import make, register, registry, spec
from ckpt_factory.tasks import Quadratic

MODULE = """
from ckpt_factory import register
from ckpt_factory.tasks import Quadratic

register("{id}", Quadratic)
"""


def run_python(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_tasks_of_the_package_are_registered() -> None:
    assert {"digits-mlp-v0", "mnist-mlp-v0", "quadratic-v0"} <= set(registry)


def test_make_gives_the_task_its_id() -> None:
    assert make("quadratic-v0").id == "quadratic-v0"


def test_unknown_id_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'digit-mlp-v0'. Did you mean 'digits-mlp-v0'\?") as e:
        make("digit-mlp-v0")
    assert "mnist-mlp-v0" in str(e.value)  # ... and lists the others
    with pytest.raises(ValueError, match=r"unknown task 'xyzzy'. Known tasks") as e:
        spec("xyzzy")
    assert "Did you mean" not in str(e.value)


def test_missing_module_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="cannot import module 'no_such_module_here'") as error:
        make("no_such_module_here:cartpole-v0")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__  # no traceback of the import underneath


@pytest.mark.parametrize("registered", ["plugin_tasks:bowl-v0", "bowl-v0"])
def test_module_id_imports_the_module_in_a_fresh_process(tmp_path: Path, registered: str) -> None:
    (tmp_path / "plugin_tasks.py").write_text(MODULE.format(id=registered))
    fresh = run_python("import ckpt_factory as c; print(c.make('plugin_tasks:bowl-v0').id)", tmp_path)
    assert fresh.stdout.strip() == "plugin_tasks:bowl-v0", fresh.stderr


def test_registering_a_task_makes_it_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry, "bowl-v1", raising=False)
    register("bowl-v1", Quadratic)
    assert isinstance(make("bowl-v1"), Quadratic)
    monkeypatch.delitem(registry, "bowl-v1")


def test_data_that_is_loaded_already_is_used_as_it_is() -> None:
    digits = make("digits-mlp-v0")
    again = make("digits-mlp-v0", data=digits.data)
    assert again.data is digits.data
