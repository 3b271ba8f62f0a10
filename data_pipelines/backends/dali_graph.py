"""The DALI graph: from encoded bytes to pixels, the same on the GPU (nvJPEG) and on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Encoded = NDArray[np.uint8]
Flip = np.int32
Source = Callable[[], tuple[list[Encoded], list[Flip]]]
"""Returns the next batch: encoded images, and 1 for each to flip horizontally."""


def import_dali() -> None:
    """Import DALI. Raises ValueError, naming what is missing, if it cannot be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"backend='dali' cannot be imported ({error}); pip install 'relaywave[dali]',"
            " or set data.backend=pillow"
        ) from None


def build_graph(
    source: Source,
    *,
    batch_size: int,
    threads: int,
    prefetch: int,
    decoder: Literal["cpu", "mixed"],
    edge: int | None = None,
    device_id: int | None = None,
) -> Any:
    """Return the DALI pipeline: encoded bytes and flips to uint8 RGB [B, 3, H, W].

    Args:
        source: Returns the next batch; called ahead of its use.
        batch_size: Images per batch.
        threads: Decoding threads of DALI's CPU part.
        prefetch: Batches decoded ahead.
        decoder: `mixed` decodes on the GPU; the rest of the graph is the same and follows it.
        edge: Cut images of any size to their centred square, and resize it to this edge; None
            for images of one size, which come as they are.
        device_id: The GPU; None for a graph that runs on the CPU, or is built but not run.

    Raises:
        ValueError: DALI is not installed.
    """
    import_dali()
    from nvidia.dali import Pipeline, fn, types

    graph = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
    with graph:
        encoded, flips = fn.external_source(source=source, num_outputs=2, batch=True)
        pixels = _decoded(encoded, decoder) if edge is None else _square(encoded, decoder, edge)
        graph.set_outputs(
            fn.crop_mirror_normalize(  # with mean 0 and deviation 1: only flips and transposes
                pixels, mirror=flips, dtype=types.UINT8, output_layout="CHW"
            )
        )
    return graph


def _decoded(encoded: Any, decoder: str) -> Any:
    from nvidia.dali import fn, types

    return fn.decoders.image(
        encoded,
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )


def _square(encoded: Any, decoder: str, edge: int) -> Any:
    """Decode only the largest centred square, and resize it as `images.centre_square` does."""
    from nvidia.dali import fn, math, types

    shape = fn.peek_image_shape(encoded, dtype=types.INT32, adjust_orientation=False)
    height, width = shape[0], shape[1]
    crop = math.min(height, width)
    square = fn.decoders.image_slice(
        encoded,
        start=fn.stack((height - crop) // 2, (width - crop) // 2),
        shape=fn.stack(crop, crop),
        axis_names="HW",
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    return fn.resize(square, size=[edge, edge], interp_type=types.INTERP_LANCZOS3, antialias=True)


def undecodable(images: Sequence[Encoded], graph_of: Callable[[Source, int], Any]) -> list[int]:
    """Return which images a graph cannot decode, found by bisecting a batch that fails.

    Args:
        images: Encoded images.
        graph_of: Builds a graph for a source and a batch size; none is used after a failure.
    """
    if _can_decode(images, graph_of):
        return []
    if len(images) == 1:
        return [0]
    half = len(images) // 2
    second = undecodable(images[half:], graph_of)
    return [*undecodable(images[:half], graph_of), *(half + place for place in second)]


def _can_decode(images: Sequence[Encoded], graph_of: Callable[[Source, int], Any]) -> bool:
    batch = (list(images), [Flip(0)] * len(images))
    try:
        graph_of(lambda: batch, len(images)).run()
    except RuntimeError:
        return False
    return True


def reason(error: RuntimeError) -> str:
    """Return the line of DALI's message that says what is wrong, without the operator's name."""
    before, _, after = str(error).partition("encountered:")
    return (after or before).strip().partition("\n")[0] or type(error).__name__
