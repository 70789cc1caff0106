"""What the tests of this folder share."""

import pytest
import torch


@pytest.fixture
def double():
    """Numbers in float64, and a fixed seed."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(kept)
