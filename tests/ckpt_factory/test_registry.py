"""The registry: ids that resolve anywhere, and answers to typing errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_factory import check_task, make, register, registry, spec, with_options
from ckpt_factory.tasks import Quadratic

from . import option_tasks

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
    for far in ("xyzzy", "nope-v0"):  # all end alike, which makes none of them close
        with pytest.raises(ValueError, match=f"unknown task '{far}'. Known tasks: .*digits-mlp-v0"):
            spec(far)
    for near in ("mnist", "mnist-v0", "mnist-mpl-v1"):
        with pytest.raises(ValueError, match=r"Did you mean 'mnist-mlp-v0'\?"):
            spec(near)


def test_a_task_of_ones_own_is_suggested_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry, "wine-v0", registry["quadratic-v0"])
    with pytest.raises(ValueError, match=r"Did you mean 'tests.ckpt_factory.option_tasks:wine-v0'\?"):
        spec("tests.ckpt_factory.option_tasks:wines")
    monkeypatch.setitem(registry, "cellar:cider-v0", registry["quadratic-v0"])
    for id in ("cider-v0", "elsewhere_registered:cidr", "tests.ckpt_factory.option_tasks:cidre-v0"):
        monkeypatch.setitem(sys.modules, "elsewhere_registered", sys)
        with pytest.raises(ValueError, match=r"Did you mean 'cellar:cider-v0'\?.* cellar:cider-v0,"):
            spec(id)
    monkeypatch.delitem(registry, "wine-v0")
    with pytest.raises(ValueError, match="one of your own is 'MODULE:wine-v0'"):
        spec("wine-v0")


def test_the_folder_that_was_searched_for_a_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot import module 'my_task'") as error:
        spec("my_task:wine-v0")
    assert str(tmp_path) not in str(error.value)  # for it was not
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"searched: the folder {tmp_path} and what is installed"):
        spec("my_task:wine-v0")


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


OPTIONS = "tests.ckpt_factory.option_tasks"


def test_options_in_the_id_are_converted_by_the_entry_points_annotations() -> None:
    id = f"{OPTIONS}:bowl-v0?dim=5&steepness=1e-3&mirrored=True&kind=round&level=2&env=a:B-v0%20%26&limit=7"
    task = make(id)
    assert isinstance(task, option_tasks.Bowl)
    expected = dict(dim=5, steepness=1e-3, mirrored=True, kind="round", level=2, env="a:B-v0 &", limit=7)
    assert task.given == expected
    assert {key: type(value) for key, value in task.given.items()} == {
        k: type(v) for k, v in expected.items()
    }
    assert task.spec.D == 5


def test_the_id_of_a_task_keeps_its_options_in_one_spelling() -> None:
    task = make(f"{OPTIONS}:bowl-v0?steepness=1e-1&mirrored=TRUE&env=m:E-v0%2F&dim=05")
    assert task.id == f"{OPTIONS}:bowl-v0?dim=5&env=m:E-v0/&mirrored=true&steepness=0.1"
    assert make(task.id).id == task.id
    assert make(f"{OPTIONS}:bowl-v0").id == f"{OPTIONS}:bowl-v0"


def test_a_task_that_needs_an_option_and_data_gets_both() -> None:
    plain, task = make("quadratic-v0"), make(f"{OPTIONS}:loaded-v0?times=2")
    assert torch.equal(task.curvature, 6 * plain.curvature)  # pyright: ignore[reportAttributeAccessIssue]
    task = make(f"{OPTIONS}:loaded-v0?times=2", data=5)
    assert torch.equal(task.curvature, 10 * plain.curvature)  # pyright: ignore[reportAttributeAccessIssue]


@given(st.text(), st.floats(), st.integers(), st.booleans())
def test_any_value_survives_the_id(env: str, steepness: float, limit: int, mirrored: bool) -> None:
    id = with_options(
        f"{OPTIONS}:bowl-v0", env=env, steepness=steepness, limit=limit, mirrored=mirrored, dim=None
    )
    task = make(id)
    assert isinstance(task, option_tasks.Bowl)
    assert task.id == id
    assert task.given["env"] == env
    assert np.array_equal(task.given["steepness"], steepness, equal_nan=True)
    assert (task.given["limit"], task.given["mirrored"], task.given["dim"]) == (limit, mirrored, 8)
    assert id.isascii()
    assert not set(id) & set(" \"'<>|\\\n")  # it stands in commands, in code, in tables and in pages


def test_options_can_be_put_on_top_of_those_of_an_id() -> None:
    id = with_options(f"{OPTIONS}:bowl-v0?dim=3&env=moon", dim=4, kind="round")
    assert id == f"{OPTIONS}:bowl-v0?dim=4&env=moon&kind=round"
    assert with_options("quadratic-v0") == with_options("quadratic-v0", env=None) == "quadratic-v0"


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("quadratic-v0?dim=5", "task 'quadratic-v0' takes no options, got 'dim'"),
        ("digits-mlp-v0?hidden=5", "task 'digits-mlp-v0' takes no options, got 'hidden'"),
        ("images-cnn-v0?augment=true", "task 'images-cnn-v0' takes no options, got 'augment'"),
        (
            ":bowl-v0?steepnes=5",
            "has no option 'steepnes'. Did you mean 'steepness'? Its options: dim, env, kind, level, limit, "
            "mirrored, steepness",
        ),
        (":bowl-v0?colour=red", "has no option 'colour'. "),
        (":round-bowl-v0?kind=oval", "has no option 'kind'. "),  # it is bound
        (":bowl-v0?dim=five", "bowl-v0' is 'five'; expected an integer"),
        (":bowl-v0?dim=5.0", "is '5.0'; expected an integer"),
        (":bowl-v0?steepness=", "is ''; expected a number"),
        (":bowl-v0?mirrored=2", "is '2'; expected true or false"),
        (":bowl-v0?kind=rond", "is 'rond'. Did you mean 'round'? Expected one of round, oval"),
        (":bowl-v0?level=3", "is '3'. Expected one of 1, 2"),
        (":bowl-v0?dim", "'dim' is no option; expected "),
        (":bowl-v0?", "'' is no option; expected "),
        (":bowl-v0?dim=1&dim=2", "gives option dim twice"),
        (":loaded-v0", "needs option times: "),
        ("bowl-v9?dim=3", "unknown task 'bowl-v9'. Did you mean "),
    ],
)
def test_options_that_a_task_does_not_have_are_one_clear_line(id: str, message: str) -> None:
    id = OPTIONS + id if id.startswith(":") else id
    for read in (make, spec, with_options):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            read(id)
        assert "\n" not in str(error.value)


def test_a_task_with_options_keeps_the_contract() -> None:
    check_task(make(f"{OPTIONS}:bowl-v0?env=a:B-v0&dim=5"))
