"""The documents as a site: it builds without a warning, and nothing on it comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

PAGES = ("index", "contributing", "changelog", "examples/plugin", "data", "reference/rdm")


def test_the_site_builds_without_a_warning_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / f"{page}.html").exists(), page
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("models", "data_pipelines", "dist_train", "evaluation", "slurm")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert {path.stem for path in (tmp_path / "api").glob("*.html")} == packages
    assert 'id="models.sampler.sample"' in (tmp_path / "api/models.html").read_text()
    errors = (tmp_path / "troubleshooting.html").read_text()
    assert "is not a multiple of micro_batch_size … x … ranks" in errors
    assert "slurm.submit.preflight" in errors, "the list of all lines is appended"
    for path in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]*src="(http[^"]*)|<link[^>]*href="(http[^"]*)',
                            path.read_text())  # fmt: skip
        assert not loaded, f"{path.name} loads {loaded}"


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    """A check of the settings above: without `validation` mkdocs would only inform."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[there](index.md#nowhere)\n")
    settings = (ROOT / "mkdocs.yml").read_text()
    kept = re.search(r"^validation:.*?(?=^\w)", settings, re.M | re.S)
    assert kept
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\n{kept[0]}")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "'index.md#nowhere', but there is no such anchor" in done.stderr
