"""Snapshots as graphs that run without relaywave: files of ONNX and of torch.export.

Of a WaveDiff or DDGAN snapshot the graph is the sampler, all T steps, its draws being inputs;
of an RDM snapshot it is the denoiser of its stage. Both take any batch and compute in float32.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.rdm.config import DenoisingConfig, EdmConfig, RelayConfig
from models.rdm.precond import Preconditioning
from models.rdm.process import Process
from models.safe_files.atomic import atomic_directory
from models.sample_rng import SampleStreams
from models.snapshot import Snapshot, SnapshotError, read_snapshot
from models.wavediff.config import WaveDiffConfig

FORMATS = ("onnx", "torch")
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
"""What the formats write; ONNX puts the weights beside it, in model.onnx.data."""
TOLERANCE = 1e-4
"""Largest difference from the model here that an exported graph may have."""
SIGMAS = (0.5, 20.0)
"""Noise levels of the images that a denoiser is traced and tried with."""


@dataclass(frozen=True)
class Graph:
    """What is exported.

    Attributes:
        module: The computation, in eval mode.
        inputs: Examples of its inputs by name, in order, two images each; any batch may be given.
        output: Name of its output.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


def export(path: Path, out: Path, kind: str) -> float:
    """Write the graph of a snapshot to a directory, after trying it; returns how exact it is.

    Args:
        path: A snapshot, or a run, whose newest one is taken.
        out: The directory to write; an earlier export is replaced.
        kind: One of FORMATS.

    Returns:
        The largest difference of its output from that of the model here, over two batches.

    Raises:
        SnapshotError: It is no snapshot of RDM, WaveDiff or DDGAN, or the graph differs by more
            than TOLERANCE.
        NotOurs: The directory holds anything else.
    """
    if kind == "onnx":
        import onnxruntime  # noqa: F401 (says that the extra is missing before anything is written)
    graph = graph_of(read_snapshot(path))
    with atomic_directory(out, is_export, "an exported graph") as directory:
        file = directory / FILES[kind]
        with _quiet(), torch.no_grad():
            program = _traced(graph)
            if kind == "onnx":
                _write_onnx(program, graph, file)
            else:
                torch.export.save(program, file)
            difference = _difference(graph, file)
        if not difference <= TOLERANCE:
            raise SnapshotError(
                f"{path}: the exported graph differs by {difference:.1e} from the model here,"
                f" expected at most {TOLERANCE}; nothing was written"
            )
    return difference


def is_export(path: Path) -> bool:
    """Tell whether a directory holds exactly what `export` writes."""
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    return len(names) == len([*path.iterdir()]) and any(
        FILES[kind] in names and names <= {FILES[kind], f"{FILES[kind]}.data"} for kind in FORMATS
    )


def graph_of(snapshot: Snapshot) -> Graph:
    """Return what is exported of a snapshot.

    Raises:
        SnapshotError: Its objective is neither RDM's nor WaveDiff's.
    """
    config = snapshot.objective
    if isinstance(config, WaveDiffConfig):
        network = _in_float32(snapshot, "generator")
        return Graph(_Sampling(config, network), draws_of(config, range(2)), "images")
    if isinstance(config, (EdmConfig, RelayConfig)):
        network = _in_float32(snapshot, "unet")
        return Graph(_Denoising(network, config.process), _noisy_images(config), "denoised")
    raise SnapshotError(
        f"{snapshot.path} is of the objective {type(config).__name__}, expected EdmConfig,"
        " RelayConfig or WaveDiffConfig; graphs of others cannot be exported"
    )


def _in_float32(snapshot: Snapshot, shape: str) -> nn.Module:
    """Return the network, computing in float32; `shape` is the setting that has its sizes."""
    return read_snapshot(snapshot.path, [f"{shape}.compute_dtype=float32"]).load_network()


def draws_of(config: WaveDiffConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return the inputs with which an exported sampler draws the images of seeds.

    Returns:
        `y`, the noise to start from, [B, C, H, W]; `z`, each step's latents, [B, T, latent_dim];
        `noise`, each step's noise, [B, T, C, H, W]. The first step is that from t = T - 1.
    """
    streams = SampleStreams([seed % (1 << 32) for seed in seeds])
    edge = config.space.edge(config.resolution)
    shape = (config.space.channels, edge, edge)
    y = streams.randn(shape)
    steps = [
        (streams.randn((config.generator.latent_dim,)), streams.randn(shape))
        for _ in range(config.diffusion.steps)
    ]
    z, noise = zip(*steps, strict=True)
    return {"y": y, "z": torch.stack(z, 1), "noise": torch.stack(noise, 1)}


class _Sampling(nn.Module):
    """All steps of a sampler: the inputs of `draws_of` to images [B, 3, H, W], not clipped."""

    def __init__(self, config: WaveDiffConfig, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.sampler = config.build_sampler(network)

    def forward(self, y: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        steps = [(z[:, step], noise[:, step]) for step in range(z.shape[1])]
        return self.sampler.generate(_GivenDraws([y, *(draw for step in steps for draw in step)]))


class _GivenDraws:
    """Random draws that were made before (models.sample_rng.Draws)."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._count = draws[0].shape[0]
        self._draws: Iterator[Tensor] = iter(draws)

    def __len__(self) -> int:
        return self._count

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return next(self._draws)

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return next(self._draws)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return next(self._draws)


class _Denoising(nn.Module):
    """A denoiser D: (x, sigma[, labels]) to denoised images [B, 3, H, W]."""

    def __init__(self, network: nn.Module, process: Process) -> None:
        super().__init__()
        self.network = network
        self.precondition = Preconditioning(process.sigma_data)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.precondition.denoise(self.network, x, sigma, labels)


def _noisy_images(config: DenoisingConfig) -> dict[str, Tensor]:
    """Return inputs of a denoiser: noise at SIGMAS; a class and none (-1), if there are classes."""
    edge, sigma = config.unet.resolution, torch.tensor(SIGMAS)
    noise = SampleStreams(range(len(SIGMAS))).randn((3, edge, edge))
    inputs = {"x": noise * sigma[:, None, None, None], "sigma": sigma}
    return inputs | ({"labels": torch.tensor([0, -1])} if config.label_dim else {})


def _traced(graph: Graph) -> torch.export.ExportedProgram:
    """Trace a graph; its batch stays open."""
    inputs = tuple(graph.inputs.values())
    graph.module(*inputs)  # tables that are made when first needed must not hold traced tensors
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        graph.module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)
    )


def _write_onnx(program: torch.export.ExportedProgram, graph: Graph, file: Path) -> None:
    exported = torch.onnx.export(
        program,
        input_names=[*graph.inputs],
        output_names=[graph.output],
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    exported.save(file, external_data=True)


def _difference(graph: Graph, file: Path) -> float:
    """Return the largest difference of a written graph's output, for one image and for all."""
    batches = [graph.inputs, {name: values[:1] for name, values in graph.inputs.items()}]
    return max(
        float((run(file, inputs) - graph.module(*inputs.values())).abs().max())
        for inputs in batches
    )


def run(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the output of an exported graph, by onnxruntime or torch.export, on the CPU."""
    if file.name == FILES["torch"]:
        output: Tensor = torch.export.load(file).module()(*inputs.values())
        return output
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what PyTorch says about itself while it exports."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
