"""What mkdocs needs beyond `docs/`: pages whose source is elsewhere, the API reference, all errors.

The sources stay where readers of the repository look for them. Their links, written for the
repository, are rewritten for the site; a link to a file that is on no page ends a strict build.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from messages import PACKAGES, ROOT, as_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/plugin/README.md": "examples/plugin.md",
}
"""Pages whose source is not in docs/: path in the repository -> path on the site."""
SOURCES = {page: source for source, page in ELSEWHERE.items()}
_CITATION = re.compile(r"docs/(reference/\w+)\.md#([\w.-]*\w)")
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def _packages() -> list[str]:
    """Return the dotted names of all packages, each before those within it."""
    return [
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in PACKAGES
        for path in sorted((ROOT / name).rglob("__init__.py"))
    ]


def _api_page(package: str) -> str:
    """Return the Markdown of one package: what it is, a line per file, then each module."""
    directory = ROOT / package.replace(".", "/")
    title, _, lines = (
        ast.get_docstring(ast.parse((directory / "__init__.py").read_text())) or ""
    ).partition("\n\n")
    modules = [path.stem for path in sorted(directory.glob("*.py")) if path.stem[:2] != "__"]
    return "\n\n".join(
        [f"# {package}", title, f"```text\n{lines}\n```"]
        + [f"::: {package}.{module}" for module in modules]
    )


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the API reference to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{name: f"api/{name}.md"} for name in _packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source is not in docs/."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for name in _packages():
        files.append(File.generated(config, f"api/{name}.md", content=_api_page(name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files into links between pages; list all lines of errors on theirs."""
    here = page.file.src_uri
    source = Path(SOURCES.get(here, f"docs/{here}"))

    def rewritten(link: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / link[2])
        if (ROOT / target).is_dir():
            target += "/README.md"
        on_site = ELSEWHERE.get(target) or target.removeprefix("docs/")
        return link[1] + os.path.relpath(on_site, os.path.dirname(here)) + link[3]

    extra = as_markdown() if here == "troubleshooting.md" else ""
    return f"{_LINK.sub(rewritten, markdown)}\n{extra}"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link what docstrings cite, such as `docs/reference/rdm.md#5.1`."""
    if not page.file.src_uri.startswith("api/"):
        return html
    return _CITATION.sub(r'<a href="../\1.html#\2">\g<0></a>', html)
