"""Whether operations are seen by more than torch.autograd: by compiled code, or torch.func."""

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]


def transformed() -> bool:
    """Whether code is compiled, or a transform of torch.func or forward mode is at work.

    Returns:
        False where torch.autograd alone may be recording.
    """
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return _functorch.maybe_current_level() is not None


def intercepted(leaves: list[Tensor]) -> list[Tensor]:
    """Leaves that a transform is about to take, as a mode of torch's functions wants them.

    What torch.func does to an argument no mode sees, so one that puts other tensors in the place of
    some is asked here.

    Args:
        leaves: the tensors.

    Returns:
        The tensors themselves where there's no mode.
    """
    if torch.compiler.is_compiling() or not torch._C._len_torch_function_stack():
        return leaves
    return [x.view_as(x) for x in leaves]
