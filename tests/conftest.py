"""Fixtures that many test files share."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tensors are small: more threads only get into each other's way

LPG_GOLDEN = Path(__file__).parent / "data" / "groove_lpg_golden.npz"


@pytest.fixture(scope="session")
def golden_lpg() -> Mapping[str, np.ndarray]:
    """Recorded numbers of the Learned Policy Gradient, by name.

    Another file of the same form takes their place where PARAMTREE_LPG_GOLDEN holds its path. A
    test that reads them has golden_lpg in its name.
    """
    path = os.environ.get("PARAMTREE_LPG_GOLDEN") or LPG_GOLDEN
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}
