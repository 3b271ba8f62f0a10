"""`relaywave convert|spectrum`: convert checkpoints, export snapshots; plot spectra of noise."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("models")

from models import command_line

if __name__ == "__main__":
    command_line.exit_on_interrupt()

from models.analysis import spectrum
from models.convert import export as graph_export
from models.convert import rdm as rdm_convert
from models.convert import wavediff as wavediff_convert
from models.rdm.presets import SAMPLERS
from models.wavediff.presets import PRESETS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """examples:
  relaywave convert rdm-official network-snapshot.pkl snapshots/imagenet64
  relaywave convert wavediff-official netG_1300.pth snapshots/celebahq256
  relaywave convert export snapshots/celebahq256 exported/celebahq256 --format onnx
  relaywave spectrum photographs/ spectrum/ --resolution 256 --upscale 4
"""


def main(argv: Sequence[str] | None = None, prog: str = "python -m models") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(argv, prog))


def _run(argv: Sequence[str] | None, prog: str) -> None:
    arguments = _parse(argv, prog)
    command_line.check_files(arguments)
    with command_line.about(arguments.out):
        arguments.run(arguments)


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Parse a command line whose key=value settings may stand before or after the options."""
    parser = build_parser(prog)
    arguments, rest = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides += [argument for argument in rest if not argument.startswith("-")]
        rest = [argument for argument in rest if argument.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = relaywave.Parser(
        prog=prog,
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help="official checkpoints to snapshots; export")
    formats = convert.add_subparsers(required=True, metavar="FORMAT")
    _add_rdm_parser(formats)
    _add_wavediff_parser(formats)
    _add_export_parser(formats)
    _add_spectrum_parser(commands)
    return parser


def _add_rdm_parser(formats: Subparsers) -> None:
    parser = formats.add_parser(
        "rdm-official",
        help="an RDM or EDM checkpoint (.pkl or .pt)",
        description="Convert an official RDM or EDM checkpoint to a snapshot.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="official .pkl or .pt file")
    parser.add_argument("out", type=Path, metavar="OUT", help="snapshot directory to write")
    parser.add_argument("--stage", choices=("edm", "relay"), help="default: relay at 256 pixels")
    parser.add_argument(
        "--images-seen", type=int, help="training progress, if the file does not record it"
    )
    parser.add_argument(
        "--sampler",
        choices=[*SAMPLERS],
        help="published sampler settings (default: of the paper's main result, guided by 3.5 for"
        " stage 2 on ImageNet)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="objective settings")
    parser.set_defaults(run=_convert_rdm)


def _convert_rdm(arguments: argparse.Namespace) -> None:
    snapshot = rdm_convert.convert_official(
        arguments.source,
        arguments.out,
        stage=arguments.stage,
        images_seen=arguments.images_seen,
        sampler=arguments.sampler,
        overrides=arguments.overrides,
    )
    found = snapshot.provenance["official_arguments"]
    print("found: " + ", ".join(f"{key}={json.dumps(value)}" for key, value in found.items()))
    changes = snapshot.provenance["sampler_changes"].items()
    changed = "".join(f", {name}={json.dumps(value)}" for name, value in changes)
    print(f"sampler: {snapshot.provenance['sampler']}{changed}")
    print(f"wrote {snapshot.path} ({snapshot.images_seen} images seen)")


def _add_wavediff_parser(formats: Subparsers) -> None:
    parser = formats.add_parser(
        "wavediff-official",
        help="netG_<epoch>.pth or content.pth of the official WaveDiff or DDGAN code",
        description="Convert an official WaveDiff or DDGAN checkpoint to a snapshot.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="netG_<epoch>.pth or content.pth")
    parser.add_argument("out", type=Path, metavar="OUT", help="snapshot directory to write")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="published configuration of the weights"
    )
    parser.add_argument(
        "--resolution", type=int, help="edge of the images, for weights of no published model"
    )
    parser.add_argument(
        "--raw", action="store_true", help="take content.pth's raw weights instead of its EMA"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, e.g. diffusion.steps=2"
    )
    parser.set_defaults(run=_convert_wavediff)


def _convert_wavediff(arguments: argparse.Namespace) -> None:
    snapshot = wavediff_convert.convert_official(
        arguments.source,
        arguments.out,
        preset=arguments.preset,
        resolution=arguments.resolution,
        overrides=arguments.overrides,
        averaged=not arguments.raw,
    )
    print(
        f"wrote {snapshot.path}: {snapshot.provenance['weights']} weights,"
        f" {snapshot.images_seen} images seen"
    )


def _add_export_parser(formats: Subparsers) -> None:
    parser = formats.add_parser(
        "export",
        help="a snapshot to ONNX or torch.export",
        description="Write a snapshot as a graph that runs without relaywave: a sampler of WaveDiff"
        " or DDGAN, whose random draws are inputs, or a denoiser of RDM.",
    )
    parser.add_argument("source", type=Path, metavar="SNAPSHOT", help="a snapshot, or a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write")
    parser.add_argument(
        "--format",
        choices=graph_export.FORMATS,
        default="onnx",
        help="onnx: model.onnx and model.onnx.data; torch: model.pt2 (default: onnx)",
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    difference = graph_export.export(arguments.source, arguments.out, arguments.format)
    file = arguments.out / graph_export.FILES[arguments.format]
    print(f"wrote {file}: it differs by at most {difference:.1e} from the model here")


def _add_spectrum_parser(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "spectrum",
        help="spectra of images, iid noise and block noise at two resolutions",
        description="Compute DCT power spectra and signal-to-noise ratios (Figure 2 of the RDM"
        " paper); write spectrum.csv, spectrum.png and spectrum.svg.",
    )
    parser.add_argument("images", type=Path, help="directory of images")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write")
    parser.add_argument("--resolution", type=int, default=256, help="full resolution in pixels")
    parser.add_argument("--upscale", type=int, default=4, help="ratio of the two resolutions")
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level")
    parser.add_argument("--limit", type=int, default=256, help="largest number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.set_defaults(run=_plot_spectrum)


def _plot_spectrum(arguments: argparse.Namespace) -> None:
    written = spectrum.analyse(
        arguments.images,
        arguments.out,
        resolution=arguments.resolution,
        upscale=arguments.upscale,
        sigma=arguments.sigma,
        limit=arguments.limit,
        seed=arguments.seed,
    )
    print("wrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    sys.exit(main())
