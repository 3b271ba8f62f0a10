"""Wavelet transforms and FIR resampling against PyWavelets and their definitions."""

import numpy as np
import pytest
import pywt
import torch

from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.resample import fir_down, fir_kernel, fir_up, upfirdn2d
from models.wavediff.wavelets import filter_bank
from tests.launches import launches

WAVELETS = ("haar", "db2", "db4", "sym5", "coif1", "bior1.3", "bior4.4", "rbio3.1", "dmey")


def subbands(x: torch.Tensor, wavelet: str, mode: str) -> np.ndarray:
    """Return PyWavelets' coefficients in our order: LL, LH = cV, HL = cH, HH."""
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), wavelet, mode=mode)
    return np.concatenate([low, vertical, horizontal, diagonal], axis=1)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 5, 2, 2), (3, 1, 30, 6)])
def test_haar_equals_pywavelets(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y = haar_dwt(x)
    np.testing.assert_allclose(y.numpy(), subbands(x, "haar", "zero"), atol=1e-14)
    torch.testing.assert_close(haar_idwt(y), x, rtol=0, atol=1e-14)


def test_haar_is_orthonormal_and_scales():
    x = torch.rand(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    y = haar_dwt(x)
    torch.testing.assert_close(y.norm(), x.norm())
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, haar_idwt(torch.ones_like(y)))
    torch.testing.assert_close(haar_dwt(x, scale=0.5), y / 2)
    torch.testing.assert_close(haar_idwt(y / 2, scale=0.5), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_haar_takes_any_layout_and_precision(layout, dtype):
    x = torch.randn(2, 8, 4, 4).to(dtype).contiguous(memory_format=layout)
    y = haar_dwt(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.double(), haar_dwt(x.double()), rtol=0.01, atol=0.05)
    back = haar_idwt(y)
    assert back.dtype == dtype
    assert back.is_contiguous(memory_format=layout)
    torch.testing.assert_close(back.double(), x.double(), rtol=0.01, atol=0.05)


def test_haar_can_be_differentiated_twice():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        return haar_idwt(haar_dwt(x, scale=0.5).pow(2), scale=0.7)

    assert torch.autograd.gradcheck(there_and_back, (x,))
    assert torch.autograd.gradgradcheck(there_and_back, (x,))


def test_haar_takes_seven_launches():
    """A scaling, two sums of rows, four of pixels: no matrices, no permuted copies."""
    x = torch.empty(2, 3, 8, 12, device="meta")
    for transform, given in ((haar_dwt, x), (haar_idwt, haar_dwt(torch.empty_like(x)))):
        counted = launches(transform, given)
        assert len(counted.names) == 7, counted.names
        assert counted.bytes <= 8 * x.numel() * 4


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (1, 1)])
def test_odd_sizes_are_rejected(size):
    with pytest.raises(ValueError, match=f"even sizes, got {size[0]}x{size[1]}"):
        haar_dwt(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="even sizes"):
        filter_bank("db2").dwt(torch.zeros(1, 3, *size))


def test_inverse_needs_four_bands():
    with pytest.raises(ValueError, match=r"6 channels are not four subbands"):
        haar_idwt(torch.zeros(1, 6, 2, 2))


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("size", [(16, 8), (4, 2)])
def test_filter_banks_equal_pywavelets(wavelet, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    bank = filter_bank(wavelet)
    y = bank.dwt(x)
    np.testing.assert_allclose(y.numpy(), subbands(x, wavelet, "periodization"), atol=1e-12)
    low, vertical, horizontal, diagonal = (band.numpy() for band in y.chunk(4, 1))
    wanted = pywt.idwt2((low, (horizontal, vertical, diagonal)), wavelet, mode="periodization")
    np.testing.assert_allclose(bank.idwt(y).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelet_space_inverts_and_stays_in_range(wavelet):
    space = WaveletSpace(wavelet=wavelet, band_order="LL_HL_LH_HH")
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64).round() * 2 - 1
    y = space.pack(images)
    assert y.shape == (2, space.channels, space.edge(32), space.edge(32))
    assert y.abs().max() <= 1 + 1e-12
    # PyWavelets' dmey is a truncated filter that inverts only nearly
    exact = 0.05 if wavelet == "dmey" else 1e-10
    torch.testing.assert_close(space.unpack(y), images, rtol=0, atol=exact)


def test_unknown_and_missing_wavelets(monkeypatch):
    with pytest.raises(ValueError, match="wavelet='db99' is no discrete wavelet"):
        WaveletSpace(wavelet="db99")
    with pytest.raises(ValueError, match="wavelet='gaus1' is no discrete wavelet"):
        WaveletSpace(wavelet="gaus1")
    monkeypatch.setitem(__import__("sys").modules, "pywt", None)
    with pytest.raises(ValueError, match="wavelet='sym7' needs PyWavelets: pip install"):
        WaveletSpace(wavelet="sym7")


def test_spaces_and_their_sizes():
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    assert PixelSpace().pack(images) is PixelSpace().unpack(images) is images
    ours = WaveletSpace(band_order="LL_LH_HL_HH").pack(images)
    other = WaveletSpace(band_order="LL_HL_LH_HH").pack(images)
    torch.testing.assert_close(ours[:, 3:6], other[:, 6:9])
    with pytest.raises(ValueError, match="resolution=33 is odd"):
        WaveletSpace().edge(33)


def test_fir_equals_its_definition():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    kernel = fir_kernel(x)
    torch.testing.assert_close(fir_down(x), upfirdn2d(x, kernel, down=2, pad=(1, 1)))
    torch.testing.assert_close(fir_up(x), upfirdn2d(x, 4 * kernel, up=2, pad=(2, 1)))
    up = fir_up(x)
    torch.testing.assert_close(
        up[..., 2, 2], (x[..., 0:2, 0:2] * torch.tensor([[1, 3], [3, 9]]) / 16).sum((-2, -1))
    )


def test_fir_has_exact_derivatives_of_every_order():
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    for resample in (fir_down, fir_up):
        assert torch.autograd.gradcheck(lambda x, f=resample: f(x).square(), x)
        assert torch.autograd.gradgradcheck(lambda x, f=resample: f(x).pow(3), x)
