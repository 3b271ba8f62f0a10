"""The documents: links lead somewhere, the README's map is complete, commands exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    for module in re.findall(r"python -m ([a-z_.]*[a-z_])", document.read_text()):
        path = ROOT / module.replace(".", "/")
        if module not in ("pip", "pytest", "venv"):
            exists = (path / "__main__.py").exists() or path.with_suffix(".py").exists()
            assert exists, f"{document.name}: python -m {module}"


def test_the_map_in_the_readme_has_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if not path.name.startswith("__"):
                assert re.search(rf"^ *{path.name} ", readme, re.MULTILINE), (
                    f"the map in README.md lacks {path.relative_to(ROOT)}"
                )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data"], "--data needs a path that exists"),
        (["--dat", "x"], "unknown option --dat"),
    ],
)
def test_quickstart_refuses_bad_options_at_once(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        ["bash", "quickstart.sh", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Setting up" not in done.stdout


def test_scripts_parse_and_help() -> None:
    for script in ("quickstart.sh", "test.sh", ".ci/run", ".ci/setup.sh"):
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    done = subprocess.run(
        ["bash", "quickstart.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--data PATH" in done.stdout
