"""--config: settings of a file, between the recipe's and those of the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dist_train.__main__ import main
from dist_train.recipes import RECIPES, find_recipe, resolve_config
from models.config_io import to_json
from slurm.__main__ import main as slurm

RECIPE = "rdm_debug_edm16"


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What --print-config prints, with a changed setting, in a file."""
    assert main([RECIPE, "total_images=32", "optim.denoiser.lr=0.5", "--print-config"]) == 0
    path = tmp_path / "printed.json"
    path.write_text(capsys.readouterr().out)
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--print-config"]) == 0
    settings: dict[str, Any] = json.loads(capsys.readouterr().out)
    return settings


@pytest.mark.parametrize("place", ["first", "last", "with its recipe"])
def test_what_was_printed_comes_back(
    place: str, printed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [RECIPE] if place == "with its recipe" else []
    config = ["--config", printed]
    assert shown(capsys, *before, *config) == json.loads(printed.read_text())
    above = [*config, "seed=7"] if place == "first" else ["seed=7", *config]
    expected = json.loads(printed.read_text()) | {"seed": 7}
    assert shown(capsys, *before, *above) == expected
    again = printed.with_name("again.json")
    again.write_text(json.dumps(shown(capsys, *config)))
    assert shown(capsys, "--config", again) == shown(capsys, *config)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(find_recipe(name)())))
    assert resolve_config(None, path, []) == find_recipe(name)()


PART = {
    ".json": '{"recipe": "rdm_debug_edm16", "seed": 3, "optim": {"denoiser": {"lr": 0.1}},'
    ' "micro_batch_size": null, "ema": {"slow": {"type": "ConstantEma", "decay": 0.9}},'
    ' "data": {"flip": true}}',
    ".toml": 'recipe = "rdm_debug_edm16"\nseed = 3\nmicro_batch_size = "null"\n[optim.denoiser]\n'
    'lr = 0.1\n[ema.slow]\ntype = "ConstantEma"\ndecay = 0.9\n[data]\nflip = true\n',
}


@pytest.mark.parametrize("suffix", PART)
@pytest.mark.parametrize("recipe", [RECIPE, None])
def test_a_part_changes_the_recipe(suffix: str, recipe: str | None, tmp_path: Path) -> None:
    path = tmp_path / f"part{suffix}"
    path.write_text(PART[suffix])
    found = resolve_config(recipe, path, ["optim.denoiser.lr=0.2", "data.flip=false"])
    base = find_recipe(RECIPE)()
    assert (found.recipe, found.seed, found.micro_batch_size) == (RECIPE, 3, None)
    assert found.optim["denoiser"].lr == 0.2, "the command line is above the file"
    assert not found.data.flip
    assert found.ema.keys() == {*base.ema, "slow"}
    assert found.objective == base.objective


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"recipe": "rdm_debug_edm16", "sed": 1}', "'sed': .* did you mean seed"),
        ('{"recipe": "rdm_debug_edm16", "data": {"flop": true}}', "did you mean data.flip"),
        ('{"recipe": "rdm_debug_edm16", "data": {"flip": 3}}', "data.flip=3 is not of type bool"),
        ('{"recipe": "rdm_debug_edm16", "nodes": 3}', "renamed; write sharding.nodes="),
        ('{"recipe": "rdm_debug_edm16", "data": {"workers": 3}}', "data.workers=3 has no effect"),
        ('{"recipe": "rdm_debug_edm15"}', "no recipe 'rdm_debug_edm15'; did you mean rdm_debug_ed"),
        ('{"seed": 3}', "has no recipe that its settings change"),
        ('{"type": "RunConfig", "recipe": "mine", "seed": 3}', "missing"),
        ('{"type": "RunConfi", "seed": 3}', "is of type 'RunConfi', expected RunConfig"),
        ("seed = 3", "is not JSON"),
        ("[1]", "object"),
    ],
)
def test_a_bad_file_is_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    run_dir = tmp_path / "run"
    for command, arguments in ((main, []), (slurm, ["train", "--nodes=1"]), (main, ["plan"])):
        options = [] if arguments == ["plan"] else ["--run-dir", str(run_dir)]
        assert command([*arguments, "--config", str(path), *options]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert re.search(message, said), said
        assert "bad.json" in said
    assert not run_dir.exists()


def test_an_unknown_setting_of_a_complete_file_is_named(
    printed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(printed.read_text())
    document["data"]["flop"] = True
    printed.write_text(json.dumps(document))
    assert main(["--config", str(printed), "--print-config"]) == 2
    said = capsys.readouterr().err
    assert f"unknown setting {printed}.data.flop: DataConfig has" in said
    assert "did you mean flip?" in said


def test_files_that_cannot_be_meant_are_one_line(
    printed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("seed = ")
    for arguments, message in (
        ([], "name a recipe"),
        (["seed=3"], "name a recipe"),
        (["wavediff_debug", "--config", str(printed)], "is of the recipe 'rdm_debug_edm16', not"),
        (["--config", str(tmp_path / "none.json")], "No such file"),
        (["--config", str(tmp_path / "none.toml")], "No such file"),
        ([RECIPE, "--config", str(tmp_path / "bad.toml")], "cannot be read as settings of a run"),
        ([RECIPE, "--config", str(tmp_path)], "irectory"),
    ):
        assert main([*arguments, "--print-config"]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_ranks_take_it(printed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    small = ["logging.grid_seeds=0", "optim.denoiser.lr=0.001"]
    assert main(["--config", str(printed), *small, "--run-dir", str(run_dir)]) == 0
    recorded = json.loads((run_dir / "config.json").read_text())
    assert (recorded["recipe"], recorded["total_images"]) == (RECIPE, 32)
    assert main(["--config", str(run_dir / "config.json"), "--run-dir", str(run_dir)]) == 0
    assert json.loads((run_dir / "config.json").read_text()) == recorded
