"""Dry runs: what training would reject, and a few real steps beside what is planned for them.

trial.py     `train RECIPE --dry-run --steps N`: real steps, measured beside the plan
validate.py  Validates a run on a login node, as ranks will
"""

from dist_train.dry_run.validate import check_present_data, check_run, check_settings

__all__ = ["check_present_data", "check_run", "check_settings"]
