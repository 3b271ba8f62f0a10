"""Lists of seeds as text: one image per seed."""

from __future__ import annotations

from collections.abc import Sequence

SEEDS, MAX_IMAGES = 1 << 32, 10_000_000
"""Seeds that differ, and images of one request: far more than any evaluation uses."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse `0-63,100` into seeds. Raises ValueError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(last or first) < int(first):
            raise ValueError(f"seeds {text[:80]!r} are not like 0-49999 or 0-9,20")
        begin, end = int(first), int(last or first)
        if end >= SEEDS or len(seeds) + end - begin >= MAX_IMAGES:
            raise ValueError(
                f"seeds {text[:80]!r} must be below 2^32 (above, they repeat) and of at most"
                f" {MAX_IMAGES:,} images"
            )
        seeds += range(begin, end + 1)
    return tuple(seeds)


def format_seeds(seeds: Sequence[int]) -> str:
    """Return the shortest text that parse_seeds reads back as these seeds."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
