import pytest
import torch

from losses import squared_error


def test_squared_error_is_elementwise():
    assert squared_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).tolist() == [1.0, 4.0]


def test_squared_error_broadcasts_nothing():
    with pytest.raises(ValueError, match=r"target has shape \(5, 1\), expected \(5,\) \(from pred"):
        squared_error(torch.zeros(5), torch.zeros(5, 1))
    with pytest.raises(TypeError, match="squared_error: target has dtype int64"):
        squared_error(torch.zeros(5), torch.zeros(5, dtype=torch.int64))
