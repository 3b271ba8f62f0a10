"""Work on single images, as many at once as PyTorch has threads on a CPU."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def for_each_part(work: Callable[[slice], None], images: Tensor) -> None:
    """Call `work` with slices that together cover the batch, in any order, without gradients.

    On a CPU a slice is one image, which fits a core's cache, and each core has an image of its own:
    random draws are serial, so that threads inside of operations would leave cores idle. Elsewhere,
    and for tensors without data, there is one slice.
    """
    if images.device.type != "cpu" or type(images) is not Tensor:
        work(slice(0, len(images)))
        return
    parts = [slice(i, i + 1) for i in range(len(images))]
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # modes belong to threads

    def in_thread(number: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for part in parts[number::threads]:
                work(part)

    list(_pool(threads).map(in_thread, range(threads)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads whose own operations use one thread each."""
    pool, all_here = ThreadPoolExecutor(threads, "images"), threading.Barrier(threads)

    def prepare(_: int) -> None:
        torch.set_num_threads(1)
        all_here.wait()  # so that each thread has come by once

    list(pool.map(prepare, range(threads)))
    torch.set_num_threads(threads)  # what later threads start with was changed as well
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
