"""The GPU path: its graph without a GPU, its batches with one."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipelines.backends.build import build_pipeline
from data_pipelines.backends.dali_graph import build_graph
from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackOptions
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.sources.kinds import make_source
from tests.data_sets import pack, packed_set, write_class_dirs

HEADERS = {"PeekImageShape", "_TensorSubscript", "_ArithmeticGenericOp", "Stack"}
"""Operators that find the centred square from what a file's header says."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbered fields of a serialised protobuf message."""
    stream = io.BytesIO(message)

    def number() -> int:
        value = shift = 0
        while True:
            (byte,) = stream.read(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while stream.tell() < len(message):
        field, wire_type = divmod(number(), 8)
        assert wire_type in (0, 2)
        yield field, stream.read(number()) if wire_type else number()


def placement(decoder: str, edge: int | None = None) -> set[tuple[str, str]]:
    """Return (operator, device) of every operator in the serialised graph.

    In DALI's PipelineDef the operators are field 5; of each, 1 is the name and 4 are the arguments;
    of each of these, 1 is the name and 5 the text.
    """
    graph = build_graph(
        lambda: ([], []), batch_size=4, threads=1, prefetch=2, decoder=decoder, edge=edge
    )
    found = set()
    for operator in (dict_of(value) for field, value in fields(graph.serialize()) if field == 5):
        arguments = [dict_of(argument) for argument in operator[4]]
        (device,) = [argument[5][0] for argument in arguments if argument[1] == [b"device"]]
        found.add((operator[1][0].decode(), device.decode()))
    return found


def dict_of(message: bytes) -> dict[int, list[int | bytes]]:
    values: dict[int, list[int | bytes]] = defaultdict(list)
    for field, value in fields(message):
        values[field].append(value)
    return values


def test_one_graph_for_both_devices() -> None:
    assert placement("cpu") == {
        ("ExternalSource", "cpu"),  # encoded images, and flips
        ("decoders__Image", "cpu"),
        ("CropMirrorNormalize", "cpu"),
    }
    assert placement("mixed") == {
        ("ExternalSource", "cpu"),
        ("decoders__Image", "mixed"),
        ("CropMirrorNormalize", "gpu"),
    }


def test_originals_are_resized_where_they_are_decoded() -> None:
    for decoder, device in (("cpu", "cpu"), ("mixed", "gpu")):
        assert placement(decoder, edge=64) == {
            ("ExternalSource", "cpu"),
            *((name, "cpu") for name in HEADERS),
            ("decoders__ImageSlice", decoder),
            ("Resize", device),
            ("CropMirrorNormalize", device),
        }


def delivered(path: Path, backend: str, device: str) -> list[ImageBatch]:
    config = DataConfig(path=str(path), backend=backend, resolution=16, flip=True)
    pipeline = build_pipeline(config, seed=1, share=Share(0, 1, 8), device=device)
    batches = pipeline.batches(40)
    try:
        return list(itertools.islice(batches, 6))
    finally:
        batches.close()
        pipeline.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["dali", "pillow", "ffcv"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_gpu_batches_equal_cpu_batches(tmp_path: Path, backend: str, image_format: str) -> None:
    if backend == "ffcv":
        pytest.importorskip("ffcv")
        from data_pipelines.packed.beton import write_beton
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set", image_format=image_format)
    if backend == "ffcv":
        write_beton(tmp_path / "set")
    on_gpu = delivered(tmp_path / "set", backend, "cuda")
    on_cpu = delivered(tmp_path / "set", "pillow", "cpu")
    tolerance = 0 if image_format == "png" else 4
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.images.device.type == "cuda"
        assert (one.images.cpu().int() - other.images.int()).abs().max() <= tolerance
        assert torch.equal(one.labels.cpu(), other.labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_originals_on_the_gpu_equal_those_on_the_cpu(tmp_path: Path) -> None:
    source = make_source("folder", write_class_dirs(tmp_path / "s"))
    pack(source, tmp_path / "set", PackOptions(resolution=ORIGINAL))
    on_gpu = delivered(tmp_path / "set", "dali", "cuda")
    on_cpu = delivered(tmp_path / "set", "dali", "cpu")
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert (one.images.cpu().int() - other.images.int()).abs().max() <= 6
        assert torch.equal(one.labels.cpu(), other.labels)
