"""Recipes that name a published run keep its precision on a GPU that has bfloat16."""

from __future__ import annotations

import pytest
import torch

from dist_train.config import ComputeConfig
from dist_train.precision import compute_dtypes, set_float32_mode, settle_precision
from dist_train.recipes import RECIPES

RDM = {"tf32": False, "cudnn_benchmark": True}  # docs/reference/rdm.md#13.1
WAVEDIFF = {"tf32": True, "cudnn_benchmark": False}  # docs/reference/wavediff.md#12.2
ONES_OWN = {"tf32": None, "cudnn_benchmark": False}
ON_A100 = {
    # Published in float16, here in bfloat16.
    "rdm_imagenet64": ("bfloat16", RDM),
    "rdm_imagenet256": ("bfloat16", RDM),
    "rdm_imagenet256_guided": ("bfloat16", RDM),
    "rdm_imagenet256_no_block_noise": ("bfloat16", RDM),
    "rdm_celebahq256": ("bfloat16", RDM),
    "rdm_celebahq256_no_block_noise": ("bfloat16", RDM),
    "rdm_lsun_bedroom64": ("bfloat16", RDM),
    "rdm_lsun_bedroom256": ("bfloat16", RDM),
    "rdm_lsun_church256": ("bfloat16", RDM),
    # Published in float32.
    "rdm_celebahq64": ("float32", RDM),
    "rdm_lsun_church64": ("float32", RDM),
    "wavediff_cifar10": ("float32", WAVEDIFF),
    "wavediff_stl10": ("float32", WAVEDIFF),
    "wavediff_celebahq256": ("float32", WAVEDIFF),
    "wavediff_celebahq512": ("float32", WAVEDIFF),
    "wavediff_celebahq1024": ("float32", WAVEDIFF),
    "wavediff_lsun_church256": ("float32", WAVEDIFF),
    "wavediff_celebahq256_no_frequency_bottleneck": ("float32", WAVEDIFF),
    "wavediff_celebahq256_no_frequency_blocks": ("float32", WAVEDIFF),
    "wavediff_celebahq256_no_frequency_residual": ("float32", WAVEDIFF),
    "wavediff_celebahq256_no_reconstruction": ("float32", WAVEDIFF),
    "ddgan_cifar10": ("float32", WAVEDIFF),
    "ddgan_stl10": ("float32", WAVEDIFF),
    "ddgan_celebahq256": ("float32", WAVEDIFF),
    "ddgan_celebahq512": ("float32", WAVEDIFF),
    "ddgan_lsun_church256": ("float32", WAVEDIFF),
    # No published run.
    "rdm_debug_edm16": ("bfloat16", ONES_OWN),
    "rdm_debug_relay64": ("bfloat16", ONES_OWN),
    "wavediff_debug": ("bfloat16", ONES_OWN),
    "ddgan_debug": ("bfloat16", ONES_OWN),
    **{f"rdm_images{edge}": ("bfloat16", {"tf32": None}) for edge in (64, 128, 256, 512)},
    **{f"wavediff_images{edge}": ("float32", WAVEDIFF) for edge in (64, 128, 256, 512)},
    "quickstart_edm16": ("bfloat16", ONES_OWN),
    "quickstart_relay64": ("bfloat16", ONES_OWN),
    "quickstart_wavediff64": ("bfloat16", ONES_OWN),
}
"""Dtype of the networks, and settings of float32 mathematics, by recipe."""


def test_the_table_holds_every_recipe() -> None:
    assert ON_A100.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", ON_A100)
def test_published_precision_is_kept_where_there_is_bfloat16(name: str) -> None:
    dtype, float32_mode = ON_A100[name]
    settled = settle_precision(RECIPES[name](), bfloat16=True)
    assert compute_dtypes(settled.objective) == {dtype}
    assert {key: getattr(settled.compute, key) for key in float32_mode} == float32_mode


def test_float32_settings_set_the_process_flags() -> None:
    backends = torch.backends
    before = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    try:
        for tf32 in (True, False, None):  # None leaves the flags alone
            set_float32_mode(ComputeConfig(tf32=tf32, cudnn_benchmark=bool(tf32)))
            assert backends.cuda.matmul.allow_tf32 == bool(tf32)
            assert backends.cudnn.allow_tf32 == bool(tf32)
            assert backends.cudnn.benchmark == bool(tf32)
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
        backends.cudnn.benchmark = False
