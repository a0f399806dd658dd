import pytest
import torch
from baseline_networks import SCORED, Residual

from pathways.target import GatedTarget


@pytest.fixture(params=SCORED)
def make(request):
    """Makes one of the methods from a target and options."""
    return SCORED[request.param]


@pytest.fixture(params=["channel", "unit"])
def target(request) -> GatedTarget:
    torch.manual_seed(0)
    return GatedTarget(Residual(), torch.zeros(1, 1, 5, 5), granularity=request.param)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 5, 5, generator=torch.Generator().manual_seed(1))
