"""The command `relaywave`: its commands and errors, and directories with packages of the user's."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import relaywave
from dist_train.runtime.launch import child_environment
from tests.paths import ROOT
from tests.slurm.project import make_foreign_modules

OURS = {"PYTHONPATH": str(ROOT)}


def run(
    *command: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or OURS)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return make_foreign_modules(tmp_path / "project")


def test_help_imports_no_package() -> None:
    code = "import sys, relaywave; relaywave.main([]); print(*sys.modules)"
    done = run(sys.executable, "-c", code, cwd=ROOT)
    *listing, modules = done.stdout.splitlines()
    assert {line.split()[0] for line in listing if line.startswith("  ")} >= {*relaywave.COMMANDS}
    assert not {"torch", "numpy", "argcomplete", *relaywave.USES} & {*modules.split()}


@pytest.mark.parametrize(
    "arguments", ["data pack --help", "train --help", "slurm status --help", "completion fish"]
)
def test_commands_that_compute_nothing_import_no_torch(arguments: str, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{without_torch(tmp_path)}{os.pathsep}{ROOT}"}
    command = (sys.executable, "-P", "-m", "relaywave", *arguments.split())
    done = run(*command, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    """`protocols` prints inside of what all ranks do."""
    command = f"{sys.executable} -m relaywave eval protocols | true; exit ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", command, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def without_torch(directory: Path) -> Path:
    """Return a directory that, first on the path, makes the import of torch fail."""
    (directory / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    return directory


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        relaywave.main(["--version"])
    assert ended.value.code == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"relaywave {project['version']}\n"


def test_version_of_a_copy_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "9"\n')
    monkeypatch.setattr(relaywave, "HERE", tmp_path)
    assert relaywave.version() != "9"
    monkeypatch.setattr(importlib.metadata, "version", _not_found)
    assert relaywave.version() == "unknown"


def _not_found(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    "arguments",
    ["data pack", "train", "train status", "eval run", "slurm train", "convert rdm-official",
     "report", "spectrum"],
)  # fmt: skip
def test_usage_shows_what_was_typed(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        relaywave.main([*arguments.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: relaywave {arguments} ")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("trian list", "train"),
        ("data pakc photographs x", "pack"),
        ("train lst", "list"),
        ("train rdm_debug_edn16", "rdm_debug_edm16"),
        ("train rdm_debug_edm16 sede=1", "seed"),
        ("train plan rdm_debug_edm", "rdm_debug_edm"),
        ("eval tabel results", "table"),
        ("eval run x --reference y --detector inceptoin", "inception"),
        ("eval run x --reference y --protocol rdm_imagnet256", "rdm_imagenet256"),
        ("train plan rdm_debug_edm16 --gpu a100-40", "a100-40g"),
        ("slurm statsu run", "status"),
        ("slurm workflow quickstrat --root x", "quickstart"),
        ("paper run rdm_tabel1 --root x", "rdm_table1"),
        ("convert rdm-oficial a b", "rdm-official"),
    ],
)
def test_what_may_be_meant_is_suggested(
    arguments: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = relaywave.main(arguments.split())
    except SystemExit as ended:
        code = int(ended.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1, "one line"
    assert f"did you mean {meant}" in error


def test_python_m_names_the_package_that_hides_ours(foreign: Path) -> None:
    done = run(sys.executable, "-m", "dist_train", "list", cwd=foreign)
    message = (
        f"dist_train: {foreign / 'models'} hides relaywave's package models;"
        " use `relaywave train`, or run in another directory\n"
    )
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("package", ["dist_train", "data_pipelines", "models"])
def test_packages_that_are_not_needed_may_be_hidden(package: str, foreign: Path) -> None:
    shutil.rmtree(foreign / "models")
    done = run(sys.executable, "-m", package, "--help", cwd=foreign)
    assert (done.returncode, done.stderr) == (0, "")


def test_child_processes_import_our_packages_in_any_directory(foreign: Path) -> None:
    code = "import models, evaluation, slurm; print(models.__file__)"
    done = run(sys.executable, "-c", code, cwd=foreign, environment=child_environment())
    assert done.stdout.strip() == str(ROOT / "models/__init__.py"), done.stderr


def test_a_checkout_that_is_not_installed_runs_in_its_root(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "dist_train", "list", cwd=ROOT, environment={"PYTHONPATH": ""})
    assert done.returncode == 0
    assert "rdm_imagenet256" in done.stdout


def complete(line: str, tmp_path: Path, *first_on_path: str) -> list[str]:
    """Return what a shell would insert at the end of a command line, by argcomplete's protocol."""
    found = tmp_path / "found"
    protocol = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "RELAYWAVE_CACHE": str(tmp_path / "cache"),
    }
    protocol["PYTHONPATH"] = os.pathsep.join([*first_on_path, str(ROOT)])
    command = (sys.executable, "-P", "-m", "relaywave")
    done = run(*command, cwd=tmp_path, environment=protocol)
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in found.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("relaywave ", {*relaywave.COMMANDS, "completion", "--version"}),
        ("relaywave tr", {"train"}),
        ("relaywave completion ", {"bash", "zsh", "fish"}),
        ("relaywave data pa", {"pack"}),
        ("relaywave data pack phot", {"photographs"}),
        ("relaywave eval run images --detector in", {"inception"}),
        ("relaywave eval run images --protocol rdm_imagenet256_c", {"rdm_imagenet256_clean"}),
        ("relaywave convert rdm", {"rdm-official"}),
        ("relaywave train plan rdm_debug_edm16 --gpu h2", {"h200-141g"}),
        ("relaywave slurm workflow qui", {"quickstart"}),
        ("relaywave slurm sw", {"sweep"}),
        ("relaywave paper run rdm_table", {"rdm_table1", "rdm_table2", "rdm_table3"}),
        ("relaywave report runs --se", {"--serve"}),
        ("relaywave slurm train rdm_debug_e", {"rdm_debug_edm16"}),
        ("relaywave slurm train rdm_debug_edm16 --run-dir run data.ba", {"data.backend="}),
        ("relaywave train status --h", {"--help"}),
    ],
)
def test_commands_and_options_are_completed(line: str, expected: set[str], tmp_path: Path) -> None:
    found = complete(line, tmp_path)
    assert expected <= {*found}
    assert len(found) == len(expected) or line.endswith(" ")


def test_recipes_and_settings_are_completed_without_torch(tmp_path: Path) -> None:
    assert {"status", "rdm_debug_edm16"} < {*complete("relaywave train ", tmp_path)}
    no_torch = without_torch(tmp_path)
    for words, found in (
        ("rdm_debug_e", {"rdm_debug_edm16"}),
        ("rdm_debug_edm16 total", {"total_images="}),
        ("rdm_debug_edm16 optim.denoiser.l", {"optim.denoiser.lr="}),
        ("rdm_debug_edm16 --run-dir run data.backend=d", {"data.backend=dali"}),
        ("rdm_debug_edm16 --allow-changes data.flip=", {"data.flip=true", "data.flip=false"}),
    ):
        assert {*complete(f"relaywave train {words}", tmp_path, str(no_torch))} == found


@pytest.mark.parametrize("shell", relaywave.SHELLS)
def test_completion_prints_code_for_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert relaywave.main(["completion", shell]) == 0
    assert "_ARGCOMPLETE" in capsys.readouterr().out


def test_bash_takes_the_code(tmp_path: Path) -> None:
    code = run(sys.executable, str(ROOT / "relaywave.py"), "completion", "bash", cwd=tmp_path)
    done = run("bash", "-c", f"{code.stdout}\ncomplete -p relaywave", cwd=tmp_path)
    assert done.stdout.endswith("relaywave\n"), done.stderr
