"""The short table at the end: what passed, and the numbers that matter most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.gpu.ledger import Ledger

TITLES = {
    "a": "losses, gradients, samples and goldens against the processor",
    "b": "training through DeepSpeed",
    "c": "speed of the step",
    "d": "sampling and features",
    "e": "memory against the plan",
}
SHOWN = {
    "seconds": "{:.4f} s",
    "planned_seconds": "planned {:.4f} s",
    "images_per_second": "{:.1f} images/s",
    "mfu": "MFU {:.1%}",
    "seconds_per_batch": "{:.4f} s per batch",
    "ratio": "official / ours {:.2f}",
    "off_by": "plan off by {:.1%}",
    "peak_bytes_of_a_step": "peak {:,} bytes",
}


def print_table(ledger: Ledger, keys: Sequence[str]) -> None:
    """Print a row per part, then one per measured or failed task."""
    print("\n| part | passed | failed | broken | to do |\n|--|--|--|--|--|")
    for part, title in TITLES.items():
        mine = [key for key in keys if key.startswith(f"{part}/")]
        states = Counter(ledger.results.get(key, {}).get("state", "begun") for key in mine)
        counts = [states[state] for state in ("passed", "failed", "broken", "begun")]
        print(f"| {part}: {title} | {' | '.join(map(str, counts))} |")
    print("\n| task | result |\n|--|--|")
    for key in keys:
        entry = ledger.results.get(key, {})
        if text := _describe(entry):
            print(f"| {key} | {text} |")
    print(f"\n{ledger.document['machine']}\nall numbers: {ledger.path}", flush=True)


def _describe(entry: dict[str, Any]) -> str:
    if problems := entry.get("problems"):
        shown = "; ".join(problems[:3])
        return f"{entry['state']}: {shown}".replace("|", "/")
    numbers = entry.get("numbers", {})
    shown = [form.format(numbers[n]) for n, form in SHOWN.items() if numbers.get(n) is not None]
    return ", ".join(shown)
