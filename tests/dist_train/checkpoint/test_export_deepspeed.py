"""Checkpoints on disk: the file that is written, and what DeepSpeed makes of an export."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dist_train.__main__ import main
from dist_train.checkpoint.format import ShardFile
from dist_train.checkpoint.writer import StateBuffer
from tests.dist_train.test_trainer import whole_tensors
from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_wavediff


def test_state_is_copied_once_and_written_as_safetensors(tmp_path: Path) -> None:
    buffer = StateBuffer(torch.device("cpu"))
    for sizes in ((5, 3), (5, 3), (4,), ()):
        tensors = {f"net/weight/{n}@0": torch.randn(n) for n in sizes}
        wanted = {name: values.clone() for name, values in tensors.items()}
        buffer.take(tensors)
        for values in tensors.values():
            values.zero_()
        file = tmp_path / "state.safetensors"
        index = buffer.write(file)
        content = file.read_bytes()
        assert index == ShardFile(len(content), hashlib.sha256(content).hexdigest())
        found = load_file(file)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], values) for name, values in wanted.items())


def _train(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.run_dir import settle_config
    from dist_train.runtime.world import init_world

    world = init_world()
    config = replace(tiny_wavediff(), total_images=3 * BATCH)
    if world.rank == 0:
        settle_config(run_dir, config)
    build_trainer(config, run_dir, world).fit()


def _load(exported: Path, wanted: dict[str, torch.Tensor]) -> None:
    from dist_train.engine.engine import _import_deepspeed
    from dist_train.runtime.world import init_world

    deepspeed = _import_deepspeed(init_world())
    networks = tiny_wavediff().objective.build().build_networks()
    for name, network in networks.items():
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
        config = {"train_micro_batch_size_per_gpu": 1}
        engine: Any = deepspeed.initialize(model=network, optimizer=optimizer, config=config)[0]
        path, state = engine.load_checkpoint(str(exported / name))
        assert path is not None
        assert state["relaywave"]["images_seen"] == 3 * BATCH
        assert (engine.global_steps, engine.global_samples) == (3, 3 * BATCH)
        for key, parameter in network.named_parameters():
            assert torch.equal(parameter.flatten(), wanted[f"{name}/weight/{key}"])
            for moment in ("exp_avg", "exp_avg_sq"):
                values = optimizer.state[parameter][moment]
                assert torch.equal(values.flatten(), wanted[f"{name}/{moment}/{key}"])
            assert optimizer.state[parameter]["step"] == 3
        engine.destroy()


@pytest.mark.distributed
def test_deepspeed_loads_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "exported"
    run_ranks(2, _train, run_dir)
    assert main(["export", str(run_dir), str(out)]) == 0
    assert "generator after 24 images" in capsys.readouterr().out
    wanted = whole_tensors(run_dir)
    for name in ("discriminator", "generator"):
        tag = (out / name / "latest").read_text()
        states = torch.load(out / name / tag / "mp_rank_00_model_states.pt", weights_only=True)
        for key, values in states["module"].items():
            if (whole := f"{name}/weight/{key}") in wanted:
                assert torch.equal(values.flatten(), wanted[whole])
    run_ranks(1, _load, out, wanted)

    assert main(["export", str(run_dir), str(out)]) == 2
    assert "exists; name a new directory" in capsys.readouterr().err
    assert main(["export", str(run_dir), str(tmp_path / "b"), "--at", "7"]) == 2
    assert "000000000007/checkpoint.json cannot be read" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "b")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    damaged = run_dir / "checkpoints" / f"{3 * BATCH:012d}" / "rank_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["export", str(run_dir), str(tmp_path / "b")]) == 2
    assert "is complete" in capsys.readouterr().err
