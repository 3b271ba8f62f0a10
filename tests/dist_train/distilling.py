"""An objective that reads a frozen teacher and the average of what it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from models.families import objective
from models.objective import Example, LossFn, Metrics, Networks, images_to_unit_range
from models.rdm.config import EdmConfig
from models.rdm.unet import UNet, UNetConfig
from models.sampler import Sampler
from models.snapshot import read_snapshot

STUDENT, TEACHER, AVERAGE = "student", "teacher", "average"


@objective
@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Approach a teacher's output, and the average's own."""

    unet: UNetConfig
    teacher: str
    teacher_name: str = TEACHER

    @property
    def label_dim(self) -> int:
        return 0

    def build(self) -> DistillObjective:
        return DistillObjective(self)

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> Sampler:
        return EdmConfig(unet=self.unet).build_sampler(network, previous)


@dataclass(frozen=True)
class DistillObjective:
    config: DistillConfig

    sampled_network = STUDENT
    batch_multiple = 1
    second_order: frozenset[str] = frozenset()
    average = AVERAGE

    @property
    def resolution(self) -> int:
        return self.config.unet.resolution

    def build_networks(self) -> dict[str, nn.Module]:
        return {STUDENT: UNet(self.config.unet)}

    def frozen_networks(self) -> dict[str, nn.Module]:
        teacher = read_snapshot(Path(self.config.teacher)).load_network()
        return {self.config.teacher_name: teacher}

    def prepare(self, images: Tensor) -> Tensor:
        return images_to_unit_range(images)

    def losses(self) -> dict[str, LossFn]:
        return {STUDENT: self.loss}

    def loss(self, networks: Networks, example: Example, step: int) -> tuple[Tensor, Metrics]:
        time = example.draws("time").rand()
        noisy = example.x + example.draws("noise").randn(example.x.shape[1:])
        found = networks[STUDENT](noisy, time)
        taught, averaged = networks[TEACHER](noisy, time), networks[AVERAGE](noisy, time)
        assert not taught.requires_grad
        assert not averaged.requires_grad
        to_teacher = (found - taught).square().mean(dim=(1, 2, 3))
        to_average = (found - averaged).square().mean(dim=(1, 2, 3))
        metrics = {"loss": to_teacher.detach(), "to_average": to_average.detach()}
        return (to_teacher + 0.5 * to_average).mean(), metrics

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        return None
