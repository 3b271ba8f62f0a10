"""One process of a training: from a configuration to an exit code."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from dist_train.config import RunConfig
from models.command_line import EXIT_PREEMPTED
from models.safe_files.transient import STORAGE, is_transient


def train(
    config: RunConfig,
    run_dir: Path,
    allow_changes: bool = False,
    profile_steps: int = 0,
) -> int:
    """Train, or resume training, in this process group; returns the exit code.

    Args:
        config: The resolved configuration.
        run_dir: The run directory.
        allow_changes: Whether harmless settings may differ from those that the run started with.
        profile_steps: Steps to trace.
    """
    # Imported here, so that --help, --print-config and bad settings answer at once.
    from dist_train.build import build_trainer
    from dist_train.checkpoint.format import StorageError
    from dist_train.planning.micro_batch import explained, settle_micro_batch
    from dist_train.precision import set_float32_mode
    from dist_train.runtime import rank_errors
    from dist_train.runtime.run_dir import RunDir, RunDirError
    from dist_train.runtime.world import init_world
    from dist_train.trainer import Outcome

    world, run = None, None
    try:
        # Collectives outlast the watchdog, which says more than they do.
        patience = max(config.divergence.hang_timeout, config.divergence.storage_timeout)
        world = init_world(timedelta(seconds=patience + 30))
        run = RunDir(run_dir, config, world, allow_changes)
        set_float32_mode(run.config.compute)
        config = run.config = settle_micro_batch(run.config, run.micro_batch_size, world)
        trainer = build_trainer(config, run_dir, world, profile_steps)
        outcome = trainer.fit(run.begin)
    except OSError as error:
        problem = f"{run_dir} cannot be written ({error}); the last checkpoint is kept"
        passes = is_transient(error, STORAGE)
        failed = StorageError(problem) if passes else RunDirError(problem)
        return rank_errors.fail(failed, world)
    except Exception as error:
        return rank_errors.fail(explained(error, config, world), world)
    finally:
        if run is not None:
            run.leave()
    world.close()
    return EXIT_PREEMPTED if outcome is Outcome.PREEMPTED else 0
