"""The layers of the house, checked on the syntax tree of every file."""

from __future__ import annotations

import ast
from collections import Counter
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
ORDER = {
    "models": "__main__ > convert analysis > snapshot > families > rdm wavediff > layers"
    " > objective > sampler > grid > sample_rng config_io > plugins > command_line > safe_files",
    "data_pipelines": "__main__ > arguments > pack > commands > bench > backends > datasets"
    " > pipeline > sources packed > shard_urls > remote_files > images sample_order progress",
    "dist_train": "__main__ > commands completion > train ema_posthoc dry_run > build"
    " > trainer > monitoring snapshots > planning checkpoint ema > engine > runtime"
    " > precision > recipes > config > config_groups > examples ema_profiles schedules",
    "evaluation": "__main__ > commands > demo dry_run > sweep > arguments evaluate agreement"
    " > request > protocols sheets unused_options > published results > circumstances"
    " > reference > samples > features > metrics > image_sets detectors"
    " > progress digest disk overlap",
    "slurm": "__main__ > paper > workflows report > monitor > continuous_eval doctor > submit"
    " > jobs > resources > site slurm_cli log_lines > sbatch_keys",
}
"""Within a package a file or sub-package imports only what stands further down its line."""
LOWEST = ("models.safe_files", "models.command_line", "models.plugins")
"""How files are read, how commands end, what others add: data_pipelines may import these, too."""
MOST_MODULES = 16
USES_OF_THE_COMMAND = {"__main__.py", "arguments.py"}
"""Files that may import `relaywave`, which imports the packages: those that parse command lines."""
OWNERS = {
    "deepspeed": {"dist_train/engine/engine.py"},
    "nvidia": {"data_pipelines/backends/dali_graph.py"},
    "ffcv": {"data_pipelines/backends/ffcv.py", "data_pipelines/packed/beton.py"},
    "webdataset": {"data_pipelines/backends/webdataset.py"},
    "rich": {"slurm/monitor/watch.py"},
    "gradio": {"evaluation/demo/page.py"},
    "onnxruntime": {"models/convert/export.py"},
    "plotly": {"slurm/report/page.py"},
    "wandb": {"dist_train/monitoring/loggers.py"},
    "tensorboard": {"dist_train/monitoring/loggers.py"},
}
FILES = [path for layer in MAY_IMPORT for path in sorted((ROOT / layer).rglob("*.py"))]


def _imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield (top-level package, whether at module level) of every import but those of LOWEST."""
    top_level = set(map(id, getattr(tree, "body", [])))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if not name.startswith(LOWEST):
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
        if package == "relaywave":
            assert path.name in USES_OF_THE_COMMAND
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


def _imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of our modules that a file imports, also within functions."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}
IMPORTS = {name: {n for n in _imported(path) if n in MODULES} for name, path in MODULES.items()}


@pytest.mark.parametrize("package", ORDER)
def test_within_a_package_imports_point_one_way(package: str) -> None:
    rows = [row.split() for row in ORDER[package].split(">")]
    rank = {name: number for number, row in enumerate(rows) for name in row}
    rooms = {name.split(".")[1] for name in MODULES if name.startswith(package + ".")}
    assert rooms <= rank.keys(), "every room has a place in the order"
    for name, imports in IMPORTS.items():
        if not name.startswith(package + "."):
            continue
        room = name.split(".")[1]
        for other in imports:
            if other.startswith(package + ".") and other.split(".")[1] != room:
                assert rank[room] < rank[other.split(".")[1]], f"{name} must not import {other}"


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle of imports: {' > '.join((*path, name))}"
        if name not in done:
            for other in IMPORTS[name] - {name}:
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_nothing_imports_from_a_main_module() -> None:
    for name, imports in IMPORTS.items():
        assert not [other for other in imports if other.endswith("__main__")], name


def test_directories_can_be_taken_in_at_a_glance() -> None:
    counts = Counter(path.parent for path in FILES if path.name != "__init__.py")
    crowded = {str(folder): count for folder, count in counts.items() if count > MOST_MODULES}
    assert not crowded


def test_both_model_families_have_the_same_file_names() -> None:
    for name in ("config", "objective", "sampler", "presets", "blocks"):
        for family in ("rdm", "wavediff"):
            assert f"models.{family}.{name}" in MODULES
