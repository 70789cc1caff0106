"""What is refused: the check of a message, and a td that most reducers read."""

import pytest
import torch
from tensordict import TensorDict

SIZE = (2, 5)


def refused(call, function, error=(ValueError, TypeError), *words):
    """The message: it begins with the function, holds the words, and is one paragraph."""
    with pytest.raises(error) as info:
        call()
    text = str(info.value)
    assert text.startswith(f"{function}: ") and "\n" not in text, text
    for word in words:
        assert word in text, text
    return text


def steps(**entries):
    draw = torch.Generator().manual_seed(0)

    def normal(*more):
        return torch.randn(*SIZE, *more, generator=draw)

    following = {name: normal() for name in ("reward", "state_value", "action_log_prob_actor")}
    following |= {name: normal(3) for name in ("action_value", "logits")}
    following |= {"done": normal() > 0, "terminated": normal() > 1, "state_action_value": normal(2)}
    scalars = {name: normal() for name in ("state_value", "action_log_prob", "prediction")}
    others = {"logits": normal(3), "action": normal(3).argmax(-1), "action_value": normal(3)}
    other = {"state_action_value": normal(2), "next": TensorDict(following, SIZE)}
    return TensorDict({**scalars, **others, **other, **entries}, SIZE)
