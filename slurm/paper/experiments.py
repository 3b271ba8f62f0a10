"""The experiments of the two papers as data: sets, models, and what is evaluated of them.

Their published values are the tables of the same names in evaluation/published.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["table", "sweep", "training", "budget", "time", "spectrum"]
"""What a figure of an experiment shows: values by method, over a setting, over training, over
evaluations of the network, running times, or spectra."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """An image set, packed as the paper's code reads it (docs/reference).

    Attributes:
        kind: The kind of its source, and its name in `--source`.
        resolutions: Sizes that it is packed at.
        options: Further arguments of `relaywave data pack`.
        note: In what it may deviate from the paper's.
    """

    kind: str
    resolutions: tuple[int, ...]
    options: tuple[str, ...] = ()
    note: str = ""


BILINEAR = ("--filter", "bilinear")
DATA = {
    "rdm_imagenet": DataSet(kind="imagenet", resolutions=(64, 256)),
    "rdm_celebahq": DataSet(kind="celebahq", resolutions=(64, 256)),
    "wavediff_cifar10": DataSet(kind="cifar10", resolutions=(32,)),
    "wavediff_stl10": DataSet(kind="stl10", resolutions=(64,), options=BILINEAR),
    "wavediff_celebahq256": DataSet(
        kind="celebahq",
        resolutions=(256,),
        options=(*BILINEAR, "--limit", "27000"),
        note="which 27,000 of the 30,000 images the authors took is not known: here the first",
    ),
    "wavediff_celebahq_large": DataSet(
        kind="celebahq",
        resolutions=(512, 1024),
        options=BILINEAR,
        note="how many images the authors took is not known: here all 30,000",
    ),
    "wavediff_lsun_church": DataSet(
        kind="lsun", resolutions=(256,), options=(*BILINEAR, "--limit", "120000")
    ),
}


@dataclass(frozen=True, kw_only=True)
class Official:
    """A checkpoint of the authors.

    Attributes:
        file: Its place below `--official`.
        options: Further arguments of its conversion.
    """

    file: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is trained once, for all experiments that need it.

    Attributes:
        recipes: The recipe, or those of a relay's stages in order.
        data: Its image set.
        changes: Settings of the last stage that differ from the recipe's.
        official: The authors' checkpoints of all stages; () if there are none.
        epoch: The epoch that the authors evaluated; 0 is the last.
        note: In what it deviates from the paper's.
    """

    recipes: tuple[str, ...]
    data: str
    changes: tuple[str, ...] = ()
    official: tuple[Official, ...] = ()
    epoch: int = 0
    note: str = ""


_IMAGENET64 = Official(
    file="edm-imagenet-64x64-cond-adm.pkl", options=("--images-seen", "2500000000")
)
_DROPOUT = "objective.label_dropout=0.1"
_CELEBAHQ = "wavediff_celebahq256"


def _netg(directory: str, epoch: int, preset: str) -> tuple[Official]:
    return (Official(file=f"{directory}/netG_{epoch}.pth", options=("--preset", preset)),)


MODELS = {
    "rdm_imagenet256": Model(
        recipes=("rdm_imagenet64", "rdm_imagenet256_guided"),
        data="rdm_imagenet",
        official=(_IMAGENET64, Official(file="rdm-imagenet256.pt")),
        note="one training for all rows: with label dropout 0.1, which guidance needs",
    ),
    "rdm_imagenet256_no_block_noise": Model(
        recipes=("rdm_imagenet64", "rdm_imagenet256_no_block_noise"),
        data="rdm_imagenet",
        changes=(_DROPOUT,),
    ),
    "rdm_celebahq256": Model(
        recipes=("rdm_celebahq64", "rdm_celebahq256"),
        data="rdm_celebahq",
        official=(Official(file="rdm-celebahq64.pt"), Official(file="rdm-celebahq256.pt")),
    ),
    "rdm_celebahq256_no_block_noise": Model(
        recipes=("rdm_celebahq64", "rdm_celebahq256_no_block_noise"), data="rdm_celebahq"
    ),
    "wavediff_cifar10": Model(
        recipes=("wavediff_cifar10",), data="wavediff_cifar10", epoch=1300,
        official=_netg("cifar10", 1300, "wavediff_cifar10"),
    ),
    "wavediff_stl10": Model(
        recipes=("wavediff_stl10",), data="wavediff_stl10", epoch=600,
        official=_netg("stl10", 600, "wavediff_stl10"),
    ),
    "wavediff_celebahq256": Model(
        recipes=("wavediff_celebahq256",), data=_CELEBAHQ, epoch=475,
        official=_netg("celebahq256", 475, "wavediff_celebahq256"),
    ),
    "wavediff_celebahq512": Model(
        recipes=("wavediff_celebahq512",), data="wavediff_celebahq_large", epoch=350,
        official=_netg("celebahq512", 350, "wavediff_celebahq512"),
    ),
    "wavediff_celebahq1024": Model(
        recipes=("wavediff_celebahq1024",), data="wavediff_celebahq_large", epoch=350,
        official=_netg("celebahq1024", 350, "wavediff_celebahq1024"),
    ),
    "wavediff_lsun_church256": Model(
        recipes=("wavediff_lsun_church256",), data="wavediff_lsun_church", epoch=400,
        official=_netg("lsun_church", 400, "wavediff_lsun_church256"),
    ),
    "ddgan_cifar10": Model(recipes=("ddgan_cifar10",), data="wavediff_cifar10", epoch=1200),
    "ddgan_stl10": Model(recipes=("ddgan_stl10",), data="wavediff_stl10", epoch=900),
    "ddgan_celebahq256": Model(
        recipes=("ddgan_celebahq256",), data=_CELEBAHQ,
        note="the authors' command tests epoch 550 of 500: here the last",
    ),
    "ddgan_celebahq512": Model(
        recipes=("ddgan_celebahq512",), data="wavediff_celebahq_large", epoch=325
    ),
    "ddgan_lsun_church256": Model(
        recipes=("ddgan_lsun_church256",), data="wavediff_lsun_church", epoch=500
    ),
    **{
        f"wavediff_celebahq256_no_{part}": Model(
            recipes=(f"wavediff_celebahq256_no_{part}",), data=_CELEBAHQ
        )
        for part in (
            "frequency_residual", "frequency_blocks", "frequency_bottleneck", "reconstruction"
        )
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is evaluated of a model, for one row or line of an experiment.

    Attributes:
        method: Its name, that of the published row where there is one.
        model: The model.
        protocols: Protocols of the evaluation; () for running times.
        settings: Settings of its samplers that differ from the recipes'.
        options: Further arguments of `relaywave eval run`.
        grid: An axis of settings, each value of which is a row.
        budgets: Evaluations of stage 2 that a row may spend, each with the n that sets how many
            steps go to stage 1 (docs/reference/rdm.md#12.6).
        over_training: Whether snapshots of all of the training are evaluated.
        last: Whether the last snapshot is evaluated, not the epoch of the authors.
    """

    method: str
    model: str
    protocols: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    grid: str = ""
    budgets: tuple[tuple[int, int], ...] = ()
    over_training: bool = False
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        kind: What its figure shows.
        columns: Columns of the published table that are reproduced, the first is drawn.
        entries: What is evaluated.
        data: Its image set, if nothing is evaluated.
        notes: Choices that the paper does not make, or that are not known.
    """

    kind: Kind
    columns: tuple[str, ...] = ("fid",)
    entries: tuple[Entry, ...] = ()
    data: str = ""
    notes: tuple[str, ...] = field(default=())


UNGUIDED = ("sampling.guidance.scale=1",)
RANDOM = ("--labels", "random")
ETAS = "sampling.eta=0,0.1,0.15,0.2,0.25,0.3"
QUALITY = ("fid", "precision", "recall")


def _against_ddgan(dataset: str, model: str = "", *, ddgan: bool = True) -> Experiment:
    """Return WaveDiff's table of a data set, with DDGAN as the baseline."""
    model = model or dataset
    protocols = (f"wavediff_{dataset}", f"wavediff_{dataset}_recall")
    entries = [Entry(method="WaveDiff", model=f"wavediff_{model}", protocols=protocols)]
    if ddgan:
        entries.append(Entry(method="DDGAN", model=f"ddgan_{model}", protocols=protocols))
    return Experiment(kind="table", columns=("fid", "recall"), entries=tuple(entries))


def _block_noise(
    dataset: str, name: str, *options: str, settings: tuple[str, ...] = ()
) -> tuple[Entry, Entry]:
    """Return the curves of Figure 4 on a data set: with and without block noise."""
    common = {"protocols": (dataset,), "settings": settings, "options": options}
    return tuple(  # type: ignore[return-value]
        Entry(method=f"{name}, {how}", model=f"{dataset}{suffix}", over_training=True, **common)  # type: ignore[arg-type]
        for how, suffix in (("block noise", ""), ("iid noise alone", "_no_block_noise"))
    )


EXPERIMENTS = {
    "rdm_table1": Experiment(
        kind="table",
        columns=QUALITY,
        entries=(Entry(method="RDM", model="rdm_celebahq256", protocols=("rdm_celebahq256",)),),
    ),
    "rdm_table2": Experiment(
        kind="table",
        columns=("fid", "sfid", "is", "precision", "recall"),
        entries=(
            Entry(
                method="RDM", model="rdm_imagenet256", protocols=("rdm_imagenet256",),
                settings=UNGUIDED, options=RANDOM,
            ),
            Entry(
                method="RDM-G (3.5)", model="rdm_imagenet256", protocols=("rdm_imagenet256",),
                options=RANDOM,
            ),
            Entry(
                method="RDM-G (3.5), class-balance", model="rdm_imagenet256",
                protocols=("rdm_imagenet256",),
            ),
        ),
    ),
    "rdm_table3": Experiment(
        kind="sweep",
        entries=(
            Entry(
                method="ImageNet 256", model="rdm_imagenet256", protocols=("rdm_imagenet256",),
                settings=UNGUIDED, options=RANDOM, grid=ETAS,
            ),
            Entry(
                method="CelebA-HQ 256", model="rdm_celebahq256", protocols=("rdm_celebahq256",),
                grid=ETAS,
            ),
        ),
    ),
    "rdm_figure2": Experiment(
        kind="spectrum",
        columns=(),
        data="rdm_celebahq",
        notes=("The images are 256 of CelebA-HQ; which images the paper took is not known.",),
    ),
    "rdm_figure4": Experiment(
        kind="training",
        entries=(
            *_block_noise("rdm_imagenet256", "ImageNet 256", *RANDOM, settings=UNGUIDED),
            *_block_noise("rdm_celebahq256", "CelebA-HQ 256"),
        ),
    ),
    "rdm_figure5": Experiment(
        kind="budget",
        entries=(
            Entry(
                method="RDM", model="rdm_imagenet256", protocols=("rdm_imagenet256",),
                settings=UNGUIDED, options=RANDOM,
                budgets=((20, 2), (40, 4), (60, 6), (80, 8), (100, 10), (200, 20)),
            ),
        ),
        notes=("Here n = N/10: as many steps of stage 1 as the budget has evaluations.",),
    ),
    "wavediff_cifar10": _against_ddgan("cifar10"),
    "wavediff_stl10": _against_ddgan("stl10"),
    "wavediff_celebahq256": _against_ddgan("celebahq256"),
    "wavediff_celebahq512": _against_ddgan("celebahq512"),
    "wavediff_celebahq1024": _against_ddgan("celebahq1024", ddgan=False),
    "wavediff_lsun_church": _against_ddgan("lsun_church", "lsun_church256"),
    "wavediff_convergence": Experiment(
        kind="training",
        entries=tuple(
            Entry(
                method=method, model=f"{method.lower()}_cifar10", protocols=("wavediff_cifar10",),
                over_training=True,
            )
            for method in ("WaveDiff", "DDGAN")
        ),
        notes=("On CIFAR-10; the sets of the paper's figure are not known.",),
    ),
    "wavediff_ablation": Experiment(
        kind="table",
        entries=tuple(
            Entry(
                method=method, model=f"wavediff_celebahq256{part and '_no_'}{part}",
                protocols=("wavediff_celebahq256",), last=True,
            )
            for method, part in (
                ("full model", ""),
                ("without frequency residual", "frequency_residual"),
                ("without frequency-aware up and down", "frequency_blocks"),
                ("without frequency bottleneck", "frequency_bottleneck"),
                ("without reconstruction term", "reconstruction"),
            )
        ),
        notes=("All after 500 epochs, as the summary of the paper says; no epoch is chosen.",),
    ),
    "wavediff_time": Experiment(
        kind="time",
        columns=("seconds", "parameters", "gmacs", "gigabytes"),
        entries=tuple(
            Entry(method=f"{name}, {method}", model=f"{method.lower()}_{model}")
            for name, model, methods in (
                ("CIFAR-10", "cifar10", "WaveDiff DDGAN"),
                ("STL-10", "stl10", "WaveDiff DDGAN"),
                ("CelebA-HQ 256", "celebahq256", "WaveDiff DDGAN"),
                ("CelebA-HQ 512", "celebahq512", "WaveDiff DDGAN"),
                ("CelebA-HQ 1024", "celebahq1024", "WaveDiff"),
                ("LSUN Church 256", "lsun_church256", "WaveDiff DDGAN"),
            )
            for method in methods.split()
        ),
    ),
}  # fmt: skip
