"""Dry runs: what training would reject, and a few real steps beside what is planned for them.

validate.py  Validates a run on a login node, as ranks will
"""

from dist_train.dry_run.validate import check_present_data, check_run, check_settings

__all__ = ["check_present_data", "check_run", "check_settings"]
