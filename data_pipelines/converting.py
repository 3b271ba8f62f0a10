"""Running the conversion of entries in parallel, with results in order and bounded memory."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_pipelines.pack_worker import (
    ChunkConverter,
    Conversion,
    Packed,
    convert_chunk,
    start_worker,
)
from data_pipelines.sources.base import Entry, Skip, Source

CHUNK = 32
SMALL = 256


def converted(
    source: Source, conversion: Conversion, entries: Sequence[Entry], workers: int
) -> Generator[Packed | Skip]:
    """Yield the converted entries in order.

    Args:
        source: Where the entries are read from; each process opens it once.
        conversion: What is done to each.
        entries: What to convert.
        workers: Processes; with one, or few entries, everything happens in this process.

    Raises:
        RuntimeError: A worker was killed (most often for lack of memory).
    """
    if workers == 1 or len(entries) <= SMALL:
        converter = ChunkConverter(source, conversion)
        try:
            for entry in entries:
                yield from converter([entry])
        finally:
            converter.close()
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(source, conversion),
    )
    try:
        yield from _in_order(pool, entries, in_flight=4 * workers)
    except BrokenProcessPool:
        raise RuntimeError(
            "a packing process was killed, most often for lack of memory;"
            " run the same command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, entries: Sequence[Entry], in_flight: int
) -> Generator[Packed | Skip]:
    pending: deque[Future[list[Packed | Skip]]] = deque()
    for start in itertools.count(0, CHUNK):
        if start < len(entries):
            pending.append(pool.submit(convert_chunk, entries[start : start + CHUNK]))
        if not pending:
            return
        if len(pending) >= in_flight or start + CHUNK >= len(entries):
            yield from pending.popleft().result()
