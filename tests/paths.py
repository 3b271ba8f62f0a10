"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "tests/records"
