"""Plugins: what they may add, how they are imported, and what is said when that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import data_pipelines.__main__
import dist_train.__main__
import evaluation.__main__
import slurm.__main__
from dist_train.recipes import RECIPES, find_recipe
from dist_train.runtime.run_dir import read_run_config, settle_config
from models import plugins
from models.config_io import ConfigError, from_json, override
from models.families import AnyObjective, objective
from models.plugins import PluginError, Registry
from slurm.submit.code_copy import check_code, copy_code
from tests.plugins import REGISTRIES, plugins_apart

COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "train": (dist_train.__main__.main, ["list"]),
    "data": (data_pipelines.__main__.main, ["info", "set"]),
    "eval": (evaluation.__main__.main, ["protocols"]),
    "slurm": (slurm.__main__.main, ["workflow", "list"]),
}
RECIPE = """
import dataclasses
from dist_train.recipes import find_recipe, recipe

@recipe
def added():
    "A recipe of a plugin."
    return dataclasses.replace(find_recipe("rdm_debug_edm16")(), total_images={images})
"""


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "installed", list)
    with plugins_apart():
        yield


def _plugin(path: Path, images: int = 16) -> Path:
    path.write_text(RECIPE.format(images=images))
    return path


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_name_is_one_thing(registry: Registry[Any]) -> None:
    taken = next(iter(registry), None)
    if taken is not None:
        with pytest.raises(PluginError, match=f"there is a {registry.kind} '{taken}' already"):
            registry.register(taken, registry[taken])
    with pytest.raises(PluginError, match="a name is made of letters"):
        registry.register("two words", None)
    with pytest.raises(PluginError, match=f"{registry.kind} 'added' is of class int, expected"):
        registry.register("added", 7)
    assert "added" not in registry


def test_what_is_no_objective_is_rejected() -> None:
    @dataclass(frozen=True)
    class Half:
        label_dim: int = 0

        def build(self) -> None: ...

    with pytest.raises(PluginError, match="objective Half has no build_sampler"):
        objective(Half)

    class Plain: ...

    with pytest.raises(PluginError, match="objective Plain is no frozen dataclass"):
        objective(Plain)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = undefined\n", "line 2: NameError: name 'undefined' is not defined"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
        (
            "from evaluation.metrics.registry import METRICS as M\nM.register('fd', M['is'])",
            "line 2: there is a metric 'fd' already; choose another name",
        ),
        (None, "there is no such file"),
    ],
)
def test_a_plugin_that_fails_is_one_line(
    command: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    main, arguments = COMMANDS[command]
    assert main([*arguments, "--import", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert str(path) in said
    assert message in said


@pytest.mark.parametrize("command", COMMANDS)
def test_an_installed_plugin_that_fails_is_named(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "installed", lambda: ["broken_plugin"])
    main, arguments = COMMANDS[command]
    assert main(arguments) == 2
    assert "the plugin broken_plugin cannot be imported" in (said := capsys.readouterr().err)
    assert "line 1: ZeroDivisionError" in said
    assert "uninstall its package" in said


def test_a_module_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert dist_train.__main__.main(["list", "--import", "no_such_module"]) == 2
    assert "--import no_such_module: there is no module" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "data", "eval"])
def test_an_abbreviation_would_come_too_late(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments = COMMANDS[command]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--imp", str(_plugin(tmp_path / "plugin.py"))])
    assert ended.value.code == 2
    assert "unrecognized arguments: --imp" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["FILE", "=FILE", "relative", "module", "module of a package"])
def test_what_a_command_line_names_is_imported(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"package_{id(form)}").mkdir()
    (tmp_path / f"package_{id(form)}" / "__init__.py").touch()
    file = _plugin(tmp_path / f"plugin_{id(form)}.py")
    inner = _plugin(tmp_path / f"package_{id(form)}" / "inner.py")
    arguments = {
        "FILE": ["--import", str(file)],
        "=FILE": [f"--import={file}"],
        "relative": ["--import", file.name],
        "module": ["--import", file.stem],
        "module of a package": ["--import", f"package_{id(form)}.inner"],
    }[form]
    plugins.load(["list", *arguments])
    assert find_recipe("added")().total_images == 16
    (recorded,) = find_recipe("added")().imports
    assert recorded.name in {str(file), file.stem, f"package_{id(form)}.inner"}
    inner.write_text("")
    found = plugins._find(recorded.name, requested=True)
    assert (found.sha256 != recorded.sha256) == (form == "module of a package")


def _recorded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a run that needs a plugin, which this process has not imported, and the plugin."""
    file = _plugin(tmp_path / "plugin.py")
    plugins.load(["--import", str(file)])
    config = override(find_recipe("added")(), ["logging.grid_seeds=0"])
    settle_config(tmp_path / "run", config)
    plugins.LOADED.clear()
    del RECIPES["added"]
    _forget()
    return tmp_path / "run", file


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("relaywave_import_")]:
        del sys.modules[name]


def test_a_run_imports_what_it_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, file = _recorded_run(tmp_path, monkeypatch)
    config = read_run_config(run_dir)
    assert "added" in RECIPES
    assert [recorded.name for recorded in config.imports] == [str(file)]
    assert find_recipe("added")().imports == config.imports


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_run_does_not_import_what_has_changed(
    change: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir, file = _recorded_run(tmp_path, monkeypatch)
    if change == "edited":
        file.write_text(file.read_text() + f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    else:
        file.unlink()
    for arguments in (
        ["added", "--run-dir", str(run_dir)],
        ["export", str(run_dir), str(tmp_path / "out")],
        ["ema", str(run_dir), "--relative-width", "0.1"],
    ):
        assert dist_train.__main__.main(arguments) == 2
        said = capsys.readouterr().err
        assert str(file) in said
        assert ("has changed since" if change == "edited" else "there is no such file") in said
    assert not (tmp_path / "executed").exists()
    assert dist_train.__main__.main(["status", str(run_dir)]) == 0, "looking runs none of its code"
    if change == "edited":  # by name it is imported, but the run is resumed only if that is allowed
        dry = ["added", "logging.grid_seeds=0", "--run-dir", str(run_dir), "--dry-run"]
        dry += ["--import", str(file)]
        assert dist_train.__main__.main(dry) == 2
        assert "add --allow-changes to resume with other code" in capsys.readouterr().err
        assert (tmp_path / "executed").exists()
        assert dist_train.__main__.main([*dry, "--allow-changes"]) == 0


def test_what_only_a_plugin_knows_says_so() -> None:
    with pytest.raises(ConfigError, match=r"objective='Added' is not one of .* or --import FILE"):
        from_json(AnyObjective, {"type": "Added"}, "objective")
    with pytest.raises(ConfigError, match=r"backend='added' is not one of .* or --import FILE"):
        override(find_recipe("rdm_debug_edm16")(), ["data.backend=added"])


def test_jobs_run_a_copy_of_the_plugins(tmp_path: Path) -> None:
    """Also after the file was edited, and of installed plugins that the job's Python lacks."""
    file = _plugin(tmp_path / "plugin.py")
    plugins.load(["--import", str(file)])
    (tmp_path / "lib").mkdir()
    module = _plugin(tmp_path / "lib" / "installed_plugin.py", images=32)
    module.write_text(module.read_text().replace("added", "installed"))
    sys.path.append(str(module.parent))
    try:
        plugins._import(plugins._find("installed_plugin", requested=False))
    finally:
        sys.path.remove(str(module.parent))
        del sys.modules["installed_plugin"]
    copy = copy_code(tmp_path / "slurm")
    check_code(copy)
    recorded = find_recipe("added")().imports
    assert [entry.name for entry in recorded] == [str(file)], "packages are of the environment"
    _plugin(file, images=48)
    code = (
        "from models import plugins; plugins.load(); from dist_train.recipes import find_recipe;"
        "print(find_recipe('added')().total_images, find_recipe('installed')().total_images,"
        "plugins.imported()[0].sha256); from slurm.submit.code_copy import code_digest;"
        "print(code_digest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16", "32", recorded[0].sha256, copy.name]
