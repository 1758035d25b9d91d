"""Two batches of random images, the same in every test."""

import pytest
import torch


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(6, 3, 64, 64, generator=generator) for _ in range(2))
