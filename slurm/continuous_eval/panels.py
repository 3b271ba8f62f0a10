"""Results of scheduled evaluation go to the run's own loggers, such as wandb."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dist_train.monitoring.evaluations import UnsentResults
from dist_train.runtime.run_files import read_settings


def log_results(run_dir: Path) -> int:
    """Send new results to the run's own loggers, such as wandb; returns how many there were.

    While the run trains, its rank 0 does that.
    """
    config = read_settings(run_dir)
    logging = config.get("logging", config)  # runs of older versions have these at the top
    if not isinstance(logging, dict):
        return 0
    if not any(map(logging.get, ("wandb_project", "tensorboard", "loggers"))):
        return 0
    results = UnsentResults(run_dir)
    try:
        return _send(results, run_dir) if results.take() and results.read() else 0
    finally:
        results.release()


def _send(results: UnsentResults, run_dir: Path) -> int:
    from dist_train.monitoring.loggers import start_loggers
    from dist_train.runtime.run_dir import read_run_config
    from models.config_io import to_json

    config = read_run_config(run_dir)
    loggers = start_loggers(config.logging, to_json(config), run_dir)
    if not loggers:
        return 0

    def write(line: Mapping[str, float]) -> None:
        for logger in loggers:
            logger.write(line)

    count = results.send(write)
    for logger in loggers:
        logger.close()
    return count
