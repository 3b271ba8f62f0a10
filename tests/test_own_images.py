"""docs/own-images.md: its commands, in their order, from a directory of images to a table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import relaywave
from tests.data_sets import smooth_pixels
from tests.paths import ROOT

PAGE = (ROOT / "docs/own-images.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHORT = [
    "global_batch_size=4",
    "total_images=4",
    "logging.grid_seeds=0",
    "compute.channels_last=false",
]
UNET = ["objective.unet.model_channels=8", "objective.unet.num_blocks=1",
        "objective.unet.attn_resolutions=[]", "objective.sampling.steps=8"]  # fmt: skip
DEBUG = {
    "wavediff": ["objective.generator.base_channels=8", "objective.generator.blocks_per_level=1",
                 "objective.generator.mapping_layers=1", "objective.discriminator.base_channels=4"],
    "stage1": [*UNET, "objective.unet.channel_mult=[1,2]"],
    "stage2": [*UNET, "objective.unet.channel_mult=[1,1,2]"],
}  # fmt: skip
"""Settings that make the recipes small, by the name of the run's directory."""


def _at_debug_size(command: str) -> list[str]:
    for full, small in {"0-4999": "0-3", "0-15": "0-1", "256": "128"}.items():
        command = command.replace(full, small)
    arguments = shlex.split(command)[1:]
    run = next((word.removeprefix("runs/") for word in arguments if word.startswith("runs/")), "")
    if arguments[0] == "train" and run:
        arguments += [*SHORT, *DEBUG[run]]
    return arguments


@pytest.mark.slow
def test_the_commands_of_the_page_lead_to_samples_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(24):
        Image.fromarray(smooth_pixels(number, 288, 272)).save(pictures / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        if " plan " not in command:  # its counts at full size take long
            assert relaywave.main(_at_debug_size(command)) == 0, command
    assert (tmp_path / "samples.png").exists()
    table = capsys.readouterr().out.splitlines()[-6:]
    assert any("fd" in line for line in table)
    assert (tmp_path / "rdm.json").exists()
    assert (tmp_path / "wavediff.json").exists()
