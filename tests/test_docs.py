"""The documents: links and paths lead somewhere, commands exist, the README is complete."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from pathlib import Path

import pytest

import data_pipelines.__main__ as data
import dist_train.__main__ as training
import evaluation.__main__ as evaluation
import relaywave
import slurm.__main__ as slurm
from dist_train.recipes import RECIPES
from docs.architecture import PICTURE, draw
from docs.messages import VALUE, raised, texts
from tests.paths import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
OF_PLUGINS = {"flow_debug"}
"""Recipes of examples/plugin."""
PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")


def _prose(document: Path) -> str:
    """Return a document without its code and formulas."""
    return re.sub(r"```.*?```|`[^`]*`|^    .*$", "", document.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", _prose(document)):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def _anchors(document: Path) -> set[str]:
    """Return what can be linked to in a document: explicit ids, and GitHub's ids of headings."""
    text = document.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_sections(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", _prose(document)):
        place = document.parent / target if target else document
        assert anchor in _anchors(place), f"{document.name} links to {target}#{anchor}"


def test_citations_lead_to_sections() -> None:
    """`docs/reference/rdm.md#5.1, #5.2` in code and documents: each number is an anchor there."""
    citation = re.compile(r"docs/reference/(\w+)\.md((?:,?(?:\s+and)?\s*#[\d.]*\d)*)")
    sources = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")]
    cited = 0
    for path in [*DOCUMENTS, *sources]:
        text = re.sub(r"\n\s*(#\s)?\s*", " ", path.read_text())
        for page, numbers in citation.findall(text):
            anchors = _anchors(ROOT / f"docs/reference/{page}.md")
            assert numbers or path.suffix == ".md", f"{path} cites no section of {page}.md"
            for number in re.findall(r"#([\d.]*\d)", numbers):
                assert number in anchors, f"{path} cites {page}.md#{number}"
                cited += 1
    assert cited > 50
    unfinished = [path for path in sources if re.search(r"\bspec(/| sec)", path.read_text())]
    assert unfinished in ([], [Path(__file__)]), "what is cited must be in the repository"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    for module in re.findall(r"python -m ([a-z_.]*[a-z_])", document.read_text()):
        path = ROOT / module.replace(".", "/")
        if module not in ("pip", "pytest", "venv"):
            exists = (path / "__main__.py").exists() or path.with_suffix(".py").exists()
            assert exists, f"{document.name}: python -m {module}"
    known = {**{name: set() for name in (*relaywave.COMMANDS, "completion")}, **_subcommands()}
    known["train"] |= {*re.findall(r"^def (\w+)\(\) -> RunConfig", _code(document), re.M)}
    for line in re.findall(r"^ *relaywave .*|`relaywave [^`]*`", _code(document), re.M):
        _, command, *rest = line.strip("` ").split()
        if not re.fullmatch("[a-z-]+", command):
            continue  # a placeholder, or several
        assert command in known, f"{document.name}: {line}"
        if known[command] and rest and re.fullmatch(r"[a-z][a-z0-9_-]*", rest[0]):
            assert rest[0] in known[command], f"{document.name}: {line}"


def _code(document: Path) -> str:
    """Return the code of a document, with backslashes at the end of a line resolved."""
    code = re.findall(r"```.*?```|`[^`\n]*`|^    .*$", document.read_text(), flags=re.M | re.S)
    return re.sub(r"\\\n *", " ", "\n".join(code))


def _subcommands() -> dict[str, set[str]]:
    """Return the names that may stand behind the commands of relaywave that have such."""

    def names(parser: argparse.ArgumentParser) -> set[str]:
        choices = (action.choices for action in parser._actions if action.dest != "help")
        return {name for names in choices for name in names or ()}

    return {
        "data": names(data.build_parser("")),
        "train": {*training.COMMANDS, *RECIPES, *OF_PLUGINS},
        "eval": names(evaluation.build_parser("")),
        "slurm": {*slurm.COMMANDS, *slurm.ALIASES},
    }


def test_readme_is_short_and_its_tree_names_every_directory() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    tree = text.partition("## Directories")[2].split("```")[1].strip().splitlines()
    assert len(tree) <= 30
    named: set[str] = set()
    for line in tree:
        directories = [word for word in line[:24].split() if word.endswith("/")]
        if not line.startswith(" "):
            (package,) = directories
            named.add(package)
        else:
            named |= {package + directory for directory in directories}
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for name in PACKAGES
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert named == packages | {"tests/", "docs/"}


def test_documents_cite_tests_that_exist() -> None:
    cited = {
        citation
        for document in DOCUMENTS
        for citation in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", document.read_text())
    }
    assert cited
    for path, name in cited:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    tops = "|".join((*PACKAGES, "tests", "docs"))
    paths = re.findall(rf"`((?:{tops})/[a-z0-9_/]*(?:\.py|\.md)?)`", document.read_text())
    assert not [path for path in paths if not (ROOT / path).exists()]


PACKAGE_DIRS = sorted(p.parent for name in PACKAGES for p in (ROOT / name).rglob("__init__.py"))


@pytest.mark.parametrize("directory", PACKAGE_DIRS, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_say_in_a_line_what_each_file_is(directory: Path) -> None:
    lines = (
        ast.get_docstring(ast.parse((directory / "__init__.py").read_text())) or ""
    ).splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in lines[2:] if line.strip()}
    modules = {path.name for path in directory.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in directory.glob("*/__init__.py")}
    assert listed.keys() == modules | packages
    assert all(listed.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data"], "--data needs a path that exists"),
        (["--dat", "x"], "unknown option --dat"),
    ],
)
def test_quickstart_rejects_bad_options_at_once(arguments: list[str], message: str) -> None:
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


def test_every_document_is_in_the_navigation_of_the_site() -> None:
    _, _, navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")
    named = set(re.findall(r"[\w/-]+\.md", navigation))
    ours = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert ours <= named, "add them to `nav` of mkdocs.yml"


def test_lines_of_errors_that_are_quoted_are_in_the_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 70
    known = texts()
    for line in quoted:
        parts = line.split(VALUE)
        assert len("".join(parts)) > 10, f"{line} could be any line"
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in known), f"no line of the code is like: {line}"


def test_lines_of_errors_are_found_in_the_code() -> None:
    found = {line for lines in raised().values() for line in lines}
    assert "there is no recipe ……" in found
    assert "sampling needs at least one snapshot" in found
    assert len(found) > 700


def test_the_picture_of_the_architecture_is_that_of_the_imports() -> None:
    assert PICTURE.read_text() == draw(), "run: python docs/architecture.py"
