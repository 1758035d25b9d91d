import math

import pytest
import torch
from torch.nn import functional as F

from hf_essl.evaluation import feature_std, rankme


def noise(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [16, 128, 1024])
def test_std_of_a_spread_embedding_is_one_over_root_d(d):
    assert feature_std(noise(4096, d)).item() == pytest.approx(1 / math.sqrt(d), rel=0.02)


def test_std_of_a_collapsed_embedding_is_zero():
    assert feature_std(torch.ones(64, 128)).item() == pytest.approx(0, abs=1e-7)
    direction, lengths = noise(1, 128), torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    assert feature_std(direction * lengths).item() == pytest.approx(0, abs=1e-7)  # one direction, many lengths


def test_std_by_hand():
    # unit vectors (1, 0) and (0, 1): each dimension holds 1 and 0, a sample deviation of sqrt(1/2)
    got = feature_std(torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    assert got.shape == ()
    assert got.item() == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = noise(512, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature_std(z).dtype == torch.float32
        assert feature_std(z) == feature_std(z.float())
        assert rankme(z) == rankme(z.float())


def test_rank_of_orthogonal_rows_is_their_number():
    # k directions of equal strength: an entropy of log k
    for k in (1, 5, 32):
        z = torch.eye(64)[torch.arange(640) % k]
        assert rankme(z) == pytest.approx(k, rel=1e-3)


def test_rank_by_hand():
    # singular values 3 and 1, shares 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 1.7548
    assert rankme(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(1.7548, abs=1e-4)


def test_rank_of_noise_is_nearly_full_and_scale_free():
    z = noise(4096, 64)
    assert 60 < rankme(z) <= 64
    assert rankme(1000 * z) == pytest.approx(rankme(z), rel=1e-4)
    assert rankme(F.normalize(z) * 0) == pytest.approx(1, abs=1e-3)  # every embedding zero


def test_refusals():
    for measure in (feature_std, rankme):
        with pytest.raises(ValueError, match=r"shape \(1, 8\); it must be N x D"):
            measure(torch.ones(1, 8))
        with pytest.raises(ValueError, match="N x D"):
            measure(torch.ones(2, 8, 3))
    with pytest.raises(ValueError, match="not finite; the model has diverged"):
        rankme(torch.full((4, 8), torch.nan))
