"""A recorded run of the official training loop, repeated by our objective on the recorded draws."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.config import ConstantEma, CosineSchedule
from models.convert.wavediff_files import wavediff_config
from models.wavediff.data_space import PixelSpace
from models.wavediff.sampler import WaveDiffSampler
from tests.models.wavediff.goldens.arrays import TOLERANCE, Arrays, ReplayedDraws

LETTERS = {"discriminator": "D", "generator": "G"}


@dataclass
class ReplayedExample:
    """Stands for models.objective.Example: draws are those of the record."""

    x: Tensor
    recorded: dict[str, list[Tensor]]

    def draws(self, purpose: str) -> ReplayedDraws:
        return ReplayedDraws(self.recorded[purpose])


class ReplayedRun:
    """The whole recorded run in one precision: losses, gradients, Adam, EMA, rates, samples."""

    def __init__(self, arrays: Arrays, dtype: torch.dtype) -> None:
        self.arrays, self.dtype = arrays, dtype
        self.suffix = "f64" if dtype == torch.float64 else "f32"
        self.settings = arrays.config()
        config = wavediff_config(self.settings)
        grouping = dataclasses.replace(config.discriminator, stddev_grouping="strided")
        self.config = dataclasses.replace(config, discriminator=grouping)
        self.objective = self.config.build()
        self.networks = self.objective.build_networks()
        for name, letter in LETTERS.items():
            arrays.load_into(self.networks[name], dtype, f"{letter}0/")
        betas = (self.settings["beta1"], self.settings["beta2"])
        self.adam = {
            name: torch.optim.Adam(network.parameters(), betas=betas, eps=1e-8)
            for name, network in self.networks.items()
        }
        self.average = [p.detach().clone() for p in self.networks["generator"].parameters()]
        self.ema = ConstantEma(decay=self.settings["ema_decay"])
        self.iterations = 1 + max(int(m) for m in self._numbers(r"it(\d+)/"))
        epochs = self._numbers(r"ep(\d+)/")
        self.epoch_steps = len(arrays.numpy("images")) // self.settings["batch_size"]
        assert not epochs or max(epochs) < -(-self.iterations // self.epoch_steps)

    def check(self) -> None:
        for letter in LETTERS.values():
            self.arrays.numpy(f"param_order_{letter}")
        for step in range(self.iterations):
            self._check_step(step)
            epoch = step // self.epoch_steps
            if (step + 1) % self.epoch_steps == 0 and f"ep{epoch}/fake_coeffs" in self.arrays:
                self._check_samples(self.arrays.under(f"ep{epoch}/"))
        if f"final/netG_ema_norms_{self.suffix}" in self.arrays:
            self._compare(self.arrays, f"final/netG_ema_norms_{self.suffix}", norms(self.average))

    def _numbers(self, pattern: str) -> list[int]:
        return [int(m[1]) for name in self.arrays.names() if (m := re.match(pattern, name))]

    def _compare(self, view: Arrays, name: str, value: Tensor, *, float32: float = 2e-5) -> None:
        view.check(name, value, TOLERANCE[self.dtype] if self.suffix == "f64" else float32)

    def _check_step(self, step: int) -> None:
        record = self.arrays.under(f"it{step}/")
        y0 = record.tensor("y0").to(self.dtype)
        self._check_batch(y0)
        for name, letter in LETTERS.items():
            half = record.under(f"{letter}/")
            keys = ("t", "noise_tp1", "noise_t", "z", "noise_post")
            example = ReplayedExample(y0, {name: [half.tensor(key, self.dtype) for key in keys]})
            for other, network in self.networks.items():
                network.requires_grad_(other == name)
            noisy: list[Tensor] = []
            hook = self.networks["discriminator"].register_forward_pre_hook(
                lambda _, given, noisy=noisy: noisy.append(given[2])
            )
            loss, metrics = self.objective.losses()[name](self.networks, example, step)
            hook.remove()
            self._compare(half, f"x_tp1_norm_{self.suffix}", noisy[0].norm())
            self._check_losses(record.under("loss/"), name, metrics)
            self._update(name, half, loss, step)

    def _check_batch(self, y0: Tensor) -> None:
        packed = self.config.space.pack(self.arrays.tensor("images", self.dtype))
        distance = (y0[:, None] - packed[None]).abs().amax((2, 3, 4))
        assert distance.amin(1).max() < 1e-6

    def _check_losses(self, record: Arrays, name: str, metrics: dict[str, Tensor]) -> None:
        found = {"errG_adv": "loss_adversarial", "rec_l1": "loss_reconstruction"}
        if name == "discriminator":
            found = {"errD_real": "loss_real", "errD_fake": "loss_fake", "r1_weighted": "r1"}
        for key, metric in found.items():
            if f"{key}_{self.suffix}" in record:
                value = metrics[metric]
                self._compare(record, f"{key}_{self.suffix}", value)
            else:
                assert key in ("rec_l1", "r1_weighted")
                assert metrics[metric].isnan() or self.config.reconstruction_weight == 0

    def _update(self, name: str, half: Arrays, loss: Tensor, step: int) -> None:
        adam, suffix = self.adam[name], self.suffix
        adam.zero_grad()
        loss.backward()
        parameters = dict(self.networks[name].named_parameters())
        order = self.arrays.numpy(f"param_order_{LETTERS[name]}").tolist()
        assert order == list(parameters)
        gradients = {
            k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in parameters.items()
        }
        lengths = norms(gradients.values())
        self._compare(half, f"grad_norms_{suffix}", lengths, float32=1e-4)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for key in half.under("grad/").names():  # of key biases (NIN_1.b): rounding of a zero
            tolerance = 1e-6 if suffix == "f64" else 2e-4
            half.under("grad/").check(key, gradients[key], tolerance, scale=1e-3 * largest)
        rate = self._rate(name, step)
        assert abs(rate - half.number(f"lr_{suffix}")) < 1e-12
        adam.param_groups[0]["lr"] = rate
        adam.step()
        self._compare(half, f"param_norms_{suffix}", norms(parameters.values()))
        if f"params_after_flat_{suffix}" in half:
            self._check_updated(half, f"params_after_flat_{suffix}", parameters.values(), rate)
        if name == "generator":
            for mean, weight in zip(self.average, parameters.values(), strict=True):
                mean.lerp_(weight.detach(), 1 - self.ema.beta(step, 1))
            self._compare(half, f"ema_norms_{suffix}", norms(self.average))

    def _check_updated(self, half: Arrays, key: str, parameters, rate: float) -> None:
        flat = torch.cat([p.detach().flatten() for p in parameters])
        if self.suffix == "f64":
            half.check(key, flat, TOLERANCE[self.dtype])
        else:  # a gradient near zero may flip its sign: at most a step to either side
            half.check(key, flat, 2.001 * rate / float(flat.abs().max()))

    def _rate(self, name: str, step: int) -> float:
        base = self.settings["lr_d" if name == "discriminator" else "lr_g"]
        if self.settings.get("no_lr_decay", False):
            return float(base)
        schedule = CosineSchedule(epochs=self.settings["num_epoch"], epoch_images=self.epoch_steps)
        return schedule.rate(base, step)

    def _check_samples(self, record: Arrays) -> None:
        """The preview after an epoch: raw weights, recorded draws, before the inverse transform."""
        keys = sorted(
            (key for key in record.names() if key.startswith("sample")),
            key=lambda key: int(re.findall(r"\d+", key)[0]),
        )
        draws = ReplayedDraws([record.tensor(key, self.dtype) for key in keys])
        sampler = WaveDiffSampler(
            self.networks["generator"], self.objective.diffusion, PixelSpace(),
            resolution=1, latent_dim=self.config.generator.latent_dim,
        )  # fmt: skip
        with torch.no_grad():
            samples = sampler.generate(draws)
        assert draws.exhausted
        if self.suffix == "f64":  # the record's precision: Adam's first steps are lr sign(gradient)
            record.check("fake_coeffs", samples, TOLERANCE[self.dtype])


def norms(tensors) -> Tensor:
    return torch.stack([tensor.detach().double().norm() for tensor in tensors])
