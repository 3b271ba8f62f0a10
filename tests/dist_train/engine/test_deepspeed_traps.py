"""The traps of docs/reference/deepspeed.md#4: each naive way goes wrong, and ours does not.

The naive halves are here to be noticed when they change: a DeepSpeed that has mended one of them
lets a rule of dist_train/engine/engine.py go. Parity of our way is in test_engine.py, damaged
and elastic checkpoints are in test_trainer.py and test_faults.py.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_train.config import ShardingConfig
from models.config_io import ConfigError
from tests.dist_train.engine.test_engine import (
    LOSSES,
    MICRO,
    _batch,
    _discriminator_loss,
    _fake_loss,
    _networks,
    _real_loss,
)
from tests.ranks import run_ranks
from tests.tiny import tiny_wavediff

STEPS = 4
SILENTLY_WRONG = 1e-3
"""A difference of weights that no rounding explains."""


def _naive_engine(network: nn.Module, zero_stage: int, **settings: Any) -> Any:
    """Return a DeepSpeed engine as its manual has it."""
    from dist_train.engine.engine import _import_deepspeed
    from dist_train.runtime.world import init_world

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.5, 0.9))
    config = {
        "train_micro_batch_size_per_gpu": MICRO,
        "zero_optimization": {"stage": zero_stage, "reduce_bucket_size": 10_000},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        **settings,
    }
    deepspeed = _import_deepspeed(init_world())
    return deepspeed.initialize(model=network, optimizer=optimizer, config=config)[0]


def _our_engine(network: nn.Module, zero_stage: int, **zero: Any) -> Any:
    from dist_train.config import AdamConfig
    from dist_train.engine.engine import Engine
    from dist_train.runtime.world import init_world

    return Engine(
        network,
        AdamConfig(lr=1e-2, betas=(0.5, 0.9)),
        ShardingConfig(
            zero_stage=zero_stage,  # type: ignore[arg-type]
            deepspeed={"zero_optimization": zero},
        ),
        world=init_world(),
        micro_batch_size=MICRO,
        accumulation_steps=1,
    )


def _mine(step: int) -> Tensor:
    return _batch(step, torch.distributed.get_rank() * MICRO, MICRO)


def _reference(names: tuple[str, ...] = ("discriminator",)) -> dict[str, nn.Module]:
    """Return networks trained by plain PyTorch on the joined batch of two ranks."""
    networks = _networks()
    optimizers = {
        name: torch.optim.Adam(networks[name].parameters(), lr=1e-2, betas=(0.5, 0.9))
        for name in names
    }
    for step in range(STEPS):
        for name in names:
            optimizers[name].zero_grad()
            LOSSES[name](networks, _batch(step, 0, 2 * MICRO), step).backward()
            optimizers[name].step()
    return networks


def _distance(ours: nn.Module, theirs: nn.Module) -> float:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


# Several backward calls, and R1 (docs/reference/deepspeed.md#4.1).


def _terms(networks: dict[str, nn.Module], x: Tensor, step: int) -> list[Tensor]:
    """Return the discriminator's loss in two parts, as the papers' code has them."""
    return [_real_loss(networks, x, step), _fake_loss(networks, x)]


def _train_terms(engine: Any, networks: dict[str, nn.Module], *which: int) -> nn.Module:
    """Train the discriminator with a backward call for each of the terms of these numbers."""
    for step in range(STEPS):
        terms = _terms(networks, _mine(step), step)
        for number in which:
            engine.backward(terms[number])
        engine.step()
    engine.destroy()
    return networks["discriminator"]


def _check_backward_calls() -> None:
    reference = _reference()["discriminator"]
    networks = _networks()
    engine = _naive_engine(networks["discriminator"], 0)  # adds gradients up, as plain PyTorch does
    assert _distance(_train_terms(engine, networks, 0, 1), reference) < 1e-6
    for zero_stage in (1, 2):
        trained = []
        for which in ((0, 1), (1,)):
            networks = _networks()
            engine = _naive_engine(networks["discriminator"], zero_stage)
            trained.append(_train_terms(engine, networks, *which))
        assert _distance(trained[0], reference) > SILENTLY_WRONG
        assert _distance(*trained) < 1e-6  # the last term's training: the first was forgotten

        networks = _networks()
        ours = _our_engine(networks["discriminator"], zero_stage)
        first, second = _terms(networks, _mine(0), 0)
        ours.backward(first)
        with pytest.raises(RuntimeError, match="a second backward call before the step"):
            ours.backward(second)
        ours.close()


@pytest.mark.distributed
def test_a_second_backward_call_forgets_the_first_and_is_rejected() -> None:
    run_ranks(2, _check_backward_calls)


def _check_r1() -> None:
    reference = _reference()["discriminator"]
    for zero_stage in (0, 1):
        networks = _networks()
        engine = _naive_engine(networks["discriminator"], zero_stage)
        failed = False
        try:
            for step in range(STEPS):
                called = {**networks, "discriminator": engine}
                engine.backward(_discriminator_loss(called, _mine(step), step))
                engine.step()
        except (RuntimeError, IndexError):
            failed = True
        assert failed or _distance(networks["discriminator"], reference) > SILENTLY_WRONG
        engine.destroy()

        networks = _networks()
        ours = _our_engine(networks["discriminator"], zero_stage)
        assert ours.called is networks["discriminator"]  # the module, not the engine
        for step in range(STEPS):
            ours.backward(_discriminator_loss(networks, _mine(step), step))
            ours.step(1e-2)
        assert _distance(networks["discriminator"], reference) < 1e-6
        ours.close()


@pytest.mark.distributed
def test_r1_through_an_engine_breaks_and_through_the_module_is_right() -> None:
    run_ranks(2, _check_r1)


def test_r1_is_not_compiled() -> None:

    from dist_train.build import called_networks

    objective = tiny_wavediff().objective.build()
    networks = objective.build_networks()
    engines: Any = {name: _Called(network) for name, network in networks.items()}
    called = called_networks(engines, True, objective.second_order)
    assert called["discriminator"] is networks["discriminator"]
    assert isinstance(called["generator"], torch._dynamo.OptimizedModule)


class _Called:
    def __init__(self, network: nn.Module) -> None:
        self.called = network


# Two engines (docs/reference/deepspeed.md#4.2).


def _train_pair(zero_stage: int, freezing: bool) -> dict[str, nn.Module]:
    from dist_train.engine.engine import parameter_lists, updating_only

    networks = _networks()
    engines = {name: _our_engine(network, zero_stage) for name, network in networks.items()}
    parameters = parameter_lists(networks)
    for step in range(STEPS):
        for name, loss_fn in LOSSES.items():
            frozen = updating_only(name, parameters) if freezing else contextlib.nullcontext()
            with frozen:
                engines[name].backward(loss_fn(networks, _mine(step), step))
                engines[name].step(1e-2)
            if freezing:  # nothing may have leaked into the other one
                others = [p for other in networks if other != name for p in parameters[other]]
                assert all(p.grad is None or not p.grad.any() for p in others)
    for engine in engines.values():
        engine.close()
    return networks


def _check_freezing() -> None:
    reference = _reference(("discriminator", "generator"))
    for zero_stage in (0, 1, 2):
        if zero_stage == 2:
            with pytest.raises(AssertionError, match="Gradient computed twice"):
                _train_pair(zero_stage, freezing=False)
        else:
            leaked = _train_pair(zero_stage, freezing=False)["discriminator"]
            assert _distance(leaked, reference["discriminator"]) > SILENTLY_WRONG
        ours = _train_pair(zero_stage, freezing=True)
        for name, network in ours.items():
            assert _distance(network, reference[name]) < 1e-6


@pytest.mark.distributed
def test_gradients_leak_into_networks_that_are_not_frozen() -> None:
    run_ranks(2, _check_freezing)


# ZeRO-3, and what DeepSpeed decides by itself (docs/reference/deepspeed.md#4.6, #4.7).


def _generator_loss(generator: nn.Module, x: Tensor) -> Tensor:
    return generator(x).square().mean()


def _check_zero3() -> None:
    reference = _networks()["generator"]
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2, betas=(0.5, 0.9))
    for step in range(STEPS):
        adam.zero_grad()
        _generator_loss(reference, _batch(step, 0, 2 * MICRO)).backward()
        adam.step()
    wanted = [p.detach().flatten() for p in reference.parameters()]
    network = _networks()["generator"]
    engine = _our_engine(network, 3, stage3_param_persistence_threshold=0)
    assert engine.called is engine._engine  # the engine, not the module
    for step in range(STEPS):
        engine.backward(_generator_loss(engine.called, _mine(step)))
        engine.step(1e-2)
    names = [name for name, _ in network.named_parameters()]
    for piece in engine.held():
        whole = wanted[names.index(piece.name)]
        part = whole[piece.start : piece.start + len(piece.weight)]
        torch.testing.assert_close(piece.weight, part, rtol=0, atol=1e-6)
    engine.close()


@pytest.mark.distributed
def test_zero3_goes_through_the_engine() -> None:
    run_ranks(2, _check_zero3)


def _check_defaults() -> None:
    import deepspeed

    engine = _our_engine(_networks()["generator"], 1)
    assert engine._engine.gradient_clipping() == 0.0  # DeepSpeed's default is 1
    assert type(engine._optimizer) is torch.optim.Adam  # "Adam" by name may become AdamW
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False  # compiles for minutes
    engine.close()


@pytest.mark.distributed
def test_deepspeed_decides_nothing_by_itself() -> None:
    run_ranks(2, _check_defaults)


# Averages in half precision (docs/reference/deepspeed.md#4.3).


def test_an_average_in_half_precision_never_moves() -> None:
    from dist_train.config import ConstantEma
    from dist_train.ema import ShardedEma
    from dist_train.engine.shards import ParameterShard

    weight = torch.ones(8)
    ema = ShardedEma([ParameterShard("w", 0, weight, {})], ConstantEma(decay=0.9999))
    ema.update(0, 1)
    weight += 1
    half = torch.ones(8, dtype=torch.bfloat16)
    for step in range(1, 501):
        ema.update(step, 1)
        half.lerp_(weight.to(torch.bfloat16), 1 - 0.9999)
    average = ema.shards()[0].weight
    assert torch.equal(half, torch.ones_like(half))
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((8,), 2 - 0.9999**500), rtol=1e-4, atol=0)


# DeepSpeed's own restart files (docs/reference/deepspeed.md#4.4, #4.5).


def _save_naively(root: Path) -> None:
    networks = _networks()
    engine = _naive_engine(networks["generator"], 1)
    engine.backward(_generator_loss(networks["generator"], _mine(0)))
    engine.step()
    engine.save_checkpoint(str(root), tag="first")
    rank = torch.distributed.get_rank()
    torch.distributed.barrier()
    before = [p.detach().clone() for p in networks["generator"].parameters()]
    if rank == 0:  # one byte of a weight
        file = root / "first" / "mp_rank_00_model_states.pt"
        content = bytearray(file.read_bytes())
        place = bytes(content).index(before[0].numpy().tobytes())
        content[place + 3] ^= 1
        file.write_bytes(content)
    torch.distributed.barrier()
    loaded, _ = engine.load_checkpoint(str(root), load_module_only=True)
    assert loaded is not None  # no word of the damage
    changed = [
        not torch.equal(a, b)
        for a, b in zip(networks["generator"].parameters(), before, strict=True)
    ]
    assert any(changed)
    torch.distributed.barrier()
    if rank == 0:
        (root / "latest").unlink()
    torch.distributed.barrier()
    assert engine.load_checkpoint(str(root)) == (None, None)  # a silent fresh start
    engine.destroy()


def _load_naively(root: Path) -> None:
    engine = _naive_engine(_networks()["generator"], 1)
    with pytest.raises(Exception, match="world size"):
        engine.load_checkpoint(str(root), tag="first")
    engine.destroy()


def _convert_naively(root: Path) -> None:
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    options = Namespace(
        input_folder=str(root / "first"),
        output_folder=str(root / "universal"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with pytest.raises((AssertionError, KeyError)):
        ds_to_universal.main(options)


@pytest.mark.distributed
def test_deepspeeds_own_restart_files_are_not_to_be_trusted(tmp_path: Path) -> None:
    """Why checkpoints are our own, and DeepSpeed's format is an export."""
    run_ranks(2, _save_naively, tmp_path)
    run_ranks(1, _load_naively, tmp_path)
    run_ranks(1, _convert_naively, tmp_path)


# torch.distributed.checkpoint (docs/reference/deepspeed.md#5.2).


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_distributed_checkpoints_load_a_flipped_byte(tmp_path: Path) -> None:
    """Why the format is our own: no hashes, and pickles."""
    from torch.distributed import checkpoint

    weight = torch.arange(10.0)
    checkpoint.save({"w": weight}, checkpoint_id=tmp_path, no_dist=True)
    assert (tmp_path / ".metadata").read_bytes()[:1] == b"\x80"  # a pickle
    (file,) = tmp_path.glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[bytes(content).index(weight.numpy().tobytes()) + 14] ^= 1
    file.write_bytes(content)
    state = {"w": torch.zeros(10)}
    checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)  # no word of the damage
    assert (state["w"] != weight).sum() == 1


def test_engines_reject_what_zero3_cannot_do() -> None:
    from dist_train.engine.deepspeed_config import check_stage

    with pytest.raises(ConfigError, match=r"gradient penalty \(R1\)"):
        check_stage(ShardingConfig(zero_stage=3), 2, second_order=True)
