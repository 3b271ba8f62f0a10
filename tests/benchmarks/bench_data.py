"""Speed of packing and of all backends, as ratios to a plain PyTorch loader and the bare decoder.

    python -m tests.benchmarks.bench_data IMAGE_DIR PART [--work DIR] [--rounds 3]

PART is one of
    64, 256   sets packed at that edge, as JPEG and as PNG
    raw       the full-size files, cropped and resized to 256 on the fly
    packing   `pack` at 256 pixels as JPEG
    million   first batch and memory of a set of a million samples
    shuffle   how well orders with a window mix

The sets are packed into the work directory first, and reused by later calls. Backends, (a) and
(b) are measured in alternation, on two threads; medians are printed as a Markdown table.
(a) is torch's DataLoader with Pillow and 2 workers on the same images; (b) is the bare decoder,
libjpeg-turbo for JPEG (its accurate DCT, through ctypes) and Pillow for PNG, from memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.data_measures import (
    measure_million,
    measure_packing,
    measure_set,
    print_raw,
    print_row,
    print_title,
    shuffle_table,
)
from tests.benchmarks.data_sets import million, originals, packed_sets


def bench_packed(source: Path, work_dir: Path, edge: int, seconds: float, rounds: int) -> None:
    print_title()
    for title, path in packed_sets(source, work_dir, edge):
        print_row(title, measure_set(path, seconds, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="directory of images")
    parser.add_argument(
        "part", choices=("64", "256", "raw", "packing", "million", "shuffle", "prepare")
    )
    parser.add_argument("--work", type=Path, help="keep the packed sets here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work_dir = arguments.work or Path(name)
        source, seconds, rounds = arguments.source, arguments.seconds, arguments.rounds
        if arguments.part in ("64", "256"):
            bench_packed(source, work_dir, int(arguments.part), seconds, rounds)
        elif arguments.part == "raw":
            print_title()
            print_raw(originals(source, work_dir), seconds, rounds)
        elif arguments.part == "packing":
            measure_packing(source, Path(name), seconds, rounds)
        elif arguments.part == "million":
            measure_million(million(work_dir))
        elif arguments.part == "shuffle":
            shuffle_table()
        else:
            for edge in (64, 256):
                list(packed_sets(source, work_dir, edge))
            originals(source, work_dir)
            million(work_dir)


if __name__ == "__main__":
    main()
