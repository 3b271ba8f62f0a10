"""The layers of the house, checked on the syntax tree of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

MAY_IMPORT = {
    "models": {"models"},
    "data_pipelines": {"data_pipelines"},
    "dist_train": {"models", "data_pipelines", "dist_train"},
    "evaluation": {"models", "data_pipelines", "dist_train", "evaluation"},
    "slurm": {"models", "data_pipelines", "dist_train", "evaluation", "slurm"},
}
OWNERS = {
    "deepspeed": {"dist_train/engine/engine.py"},
    "nvidia": {"data_pipelines/backends/dali_graph.py"},
    "ffcv": {"data_pipelines/backends/ffcv.py", "data_pipelines/packed/beton.py"},
    "webdataset": {"data_pipelines/backends/webdataset.py"},
    "wandb": {"dist_train/monitoring/loggers.py"},
    "tensorboard": {"dist_train/monitoring/loggers.py"},
}
FILES = [path for layer in MAY_IMPORT for path in sorted((ROOT / layer).rglob("*.py"))]


def _imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield (top-level package, whether at module level) of every import."""
    top_level = set(map(id, getattr(tree, "body", [])))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        for name in names:
            yield name.partition(".")[0], id(node) in top_level


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way_and_heavy_packages_have_one_owner(path: Path) -> None:
    relative = path.relative_to(ROOT)
    layer = relative.parts[0]
    for package, at_module_level in _imports(ast.parse(path.read_text())):
        if package in MAY_IMPORT:
            assert package in MAY_IMPORT[layer], f"{relative} must not import {package}"
        if package in OWNERS:
            assert str(relative) in OWNERS[package], f"only {OWNERS[package]} may import {package}"
            assert not at_module_level, f"import {package} inside the function that needs it"
        if package == "submitit":
            assert layer == "slurm"
            assert not at_module_level


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_untrusted_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", path
        assert called not in {"pickle.load", "pickle.loads", "os.system", "eval", "exec"}, path
        assert keywords.get("shell") != "True", path
        assert keywords.get("allow_pickle") != "True", path
