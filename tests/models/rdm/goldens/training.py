"""Checks of the schedules and of one optimisation step."""

from __future__ import annotations

import torch

from dist_train.config import HalflifeEma, WarmupSchedule
from models.rdm.edm_sampler import EdmSampling
from models.rdm.objective import hide_labels, squared_errors
from models.rdm.precond import Preconditioning
from models.rdm.process import EdmProcess, RelayProcess
from models.rdm.relay_sampler import RelaySampling
from models.rdm.unet import UNet
from tests.golden_file import Golden, assert_close_each, assert_near, assert_near_max
from tests.models.rdm.goldens.networks import load_unet
from tests.models.rdm.goldens.process import blur_tape
from tests.models.rdm.goldens.replay import Tape, class_indices


def check_schedules(golden: Golden) -> None:
    for case in golden.names(r"gridp_(\w+)"):
        steps, sigma_min, sigma_max, rho, truncation = golden[f"gridp_{case}"].tolist()
        common = {
            "steps": int(steps), "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho,
            "second_order": True,
        }  # fmt: skip
        settings = EdmSampling(**common)
        if truncation:
            settings = RelaySampling(truncation_sigma=truncation, **common)
            kept = torch.tensor(settings.levels(), dtype=torch.float64)
            assert_close_each(kept, golden[f"kept_{case}"], 1e-12, f"kept_{case}")
        grid = torch.tensor(settings.grid(), dtype=torch.float64)
        assert_close_each(grid, golden[f"grid_{case}"], 1e-12, f"grid_{case}")
        assert settings.evaluations(False) == int(golden[f"nfe_{case}"])
    check_training_schedules(golden)


def check_training_schedules(golden: Golden) -> None:
    progress = golden["nimg"].tolist()
    schedule = WarmupSchedule(images=10_000_000)
    most = max(progress)  # the file does not have the base
    base = float(golden["lr"][progress.index(most)]) / schedule.rate(1.0, most)
    rates = [schedule.rate(base, images) for images in progress]
    assert_close_each(torch.tensor(rates, dtype=torch.float64), golden["lr"], 1e-12, "lr")
    for case in golden.names(r"emap_(\w+)"):
        batch, halflife_kimg, rampup = golden[f"emap_{case}"].tolist()
        ema = HalflifeEma(
            halflife_images=round(halflife_kimg * 1000), rampup_ratio=None if rampup < 0 else rampup
        )
        betas = torch.tensor([ema.beta(n, int(batch)) for n in progress], dtype=torch.float64)
        assert_close_each(betas, golden[f"beta_{case}"], 1e-12, f"beta_{case}")
        implied = 0.5 ** (batch / golden[f"halflife_{case}"].clamp(min=1e-8))
        assert_close_each(betas, implied, 1e-12, f"halflife_{case}")
    ema = HalflifeEma(halflife_images=round(float(golden["ema_halflife_kimg"]) * 1000))
    average, batch = golden["ema_init"], int(golden["ema_batch"])
    averages = []
    for t, weights in enumerate(golden["ema_w_in"]):
        average = average.lerp(weights, 1 - ema.beta(t * batch, batch))
        averages.append(average)
    assert_near(torch.stack(averages), golden["ema_out"], 1e-6, "ema_out")


def check_train_step(golden: Golden) -> None:
    """Repeat the official step by hand: the loop's own step is tested against plain PyTorch."""
    batch = len(golden["images"])
    upscale, prob_length, blur_sigma_max, alpha = golden["blur_params"].tolist()
    processes = {
        "edm": EdmProcess(),
        "blur": RelayProcess(
            upscale=int(upscale), prob_length=prob_length, blur_sigma_max=blur_sigma_max,
            block_noise_alpha=alpha,
        ),
    }  # fmt: skip
    for name, process in processes.items():
        network, arguments = load_unet(matching_unet(golden))
        labels = class_indices(golden.get("labels"))
        if labels is not None and "label_uniform" in golden:
            uniform = golden["label_uniform"].flatten()
            labels = hide_labels(labels, uniform, arguments["label_dropout"])
        if isinstance(process, EdmProcess):
            level = process.sample_level(Tape(golden["edm_rnd_normal"]))
            tape = Tape(golden["edm_noise"])
        else:
            level = process.sample_level(Tape(golden["blur_uniform"]))
            tape = blur_tape(golden, process, "blur_")
        noisy = process.corrupt(golden["images"], level, tape)
        denoised = Preconditioning(process.sigma_data).denoise(
            network, noisy, level.sigma, labels, golden.get("augment_labels")
        )
        errors = squared_errors(denoised, golden["images"], process.weight(level.sigma))
        assert_near_max(errors.detach().sum(), golden[f"loss_sum_{name}"], 1e-5, f"loss_sum_{name}")
        loss_scaling = float(golden["hyper"][0])
        gradient_scale = loss_scaling * batch / (32 if golden["images"].shape[-1] == 64 else 256)
        (gradient_scale * errors.mean()).backward()
        check_update(golden, name, network)


def matching_unet(golden: Golden) -> Golden:
    """Return the network file that the step starts from: the last with its parameters and size."""
    wanted = set(golden.array("param_names").tolist())
    for path in sorted(golden.path.parent.glob("unet_*.npz"), reverse=True):
        unet = Golden(path)
        names = {name for name in unet.names(r"sd/(.*)") if "resample_filter" not in name}
        fits = unet.json("cfg")["img_resolution"] == golden["images"].shape[-1]
        if fits and names == wanted:
            return unet
    raise AssertionError(f"{golden.path.name}: no unet_*.npz has its parameters")


def check_update(golden: Golden, name: str, network: UNet) -> None:
    """Compare gradients, and the changes of weights and their average by one step of Adam."""
    parameters = dict(network.named_parameters())
    ordered = [parameters[n.removeprefix("model.")] for n in golden.array("param_names").tolist()]
    before = [parameter.detach().clone() for parameter in ordered]
    gradients = [parameter.grad.double() for parameter in ordered]
    norms = torch.stack([gradient.norm() for gradient in gradients])
    expected = golden[f"grad_norm_{name}"]
    largest = float(expected.max())
    assert_near(norms, expected, 1e-4 * largest, f"grad_norm_{name}")
    significant = expected > 1e-6 * largest
    assert_close_each(norms[significant], expected[significant], 1e-4, f"grad_norm_{name}")
    sums = torch.stack([gradient.sum() for gradient in gradients])
    assert_near(sums, golden[f"grad_sum_{name}"], 1e-4 * largest, f"grad_sum_{name}")
    full = golden[f"grad_full_{name}"]
    position = int((expected - full.double().norm()).abs().argmin())  # the file does not name it
    assert_near_max(gradients[position], full, 1e-4, f"grad_full_{name}")
    _, images_seen, batch, base_lr = golden["hyper"].tolist()
    rate = WarmupSchedule(images=10_000_000).rate(base_lr, int(images_seen))
    torch.optim.Adam(ordered, lr=rate).step()
    beta = HalflifeEma(halflife_images=500_000).beta(int(images_seen), int(batch))
    assert_near(torch.tensor(beta, dtype=torch.float64), golden["ema_beta"], 1e-12, "ema_beta")
    after = [parameter.detach() for parameter in ordered]
    averages = [old.lerp(new, 1 - beta) for old, new in zip(before, after, strict=True)]
    check_changes(golden[f"delta_norm_{name}"], before, after, gradients, rate)
    check_changes(golden[f"ema_delta_norm_{name}"], before, averages, gradients, rate * (1 - beta))


def check_changes(expected, before, after, gradients, rate: float) -> None:
    """Compare the norms of changes within 1 %.

    Adam's first step moves an entry by +-rate, or less if its gradient is of eps' size. Where the
    true gradient is 0 (the key part of qkv.bias: softmax ignores it) rounding decides, so that such
    entries may contribute anything from nothing to the rate each.
    """
    for i, gradient in enumerate(gradients):
        change = (after[i] - before[i]).double()
        decided = gradient.abs() > 1e-6 * gradient.abs().max()
        least = float(change[decided].norm())
        most = (least**2 + int((~decided).sum()) * rate**2) ** 0.5
        assert 0.99 * least <= float(expected[i]) <= 1.01 * most, (i, least, most, expected[i])
