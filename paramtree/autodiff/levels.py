"""Whether operations are seen by more than torch.autograd: by compiled code, or torch.func."""

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]


def transformed() -> bool:
    """Whether code is compiled, or a transform of torch.func or forward mode is at work.

    Returns:
        False where torch.autograd alone may be recording.
    """
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return _functorch.maybe_current_level() is not None
