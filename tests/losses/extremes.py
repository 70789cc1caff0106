"""Numbers at the ends of a dtype: derivatives of a call, and whether they are all finite."""

import torch
from tensordict import TensorDict

from tests.contract.case import changed, floats

SIZE = (2, 5)
TAKEN = torch.ones(SIZE, dtype=torch.int64)  # the second of the actions, at each step


def single(x):
    return x.float() if x.is_floating_point() else x


def differentiated(call, inputs):
    """Result, gradients and second derivatives of a function of tensors by name."""
    live = {k: x.detach().clone().requires_grad_() for k, x in inputs.items()}
    results = [x for x in call(live) if x.is_floating_point()]
    value = sum((weighed(x) for x in results if x.requires_grad), start=torch.zeros(()))
    once = torch.autograd.grad(value, [*live.values()], create_graph=True, allow_unused=True)
    again = sum((weighed(x) for x in once if x is not None), start=torch.zeros(()))
    twice = [None] * len(once)
    if again.requires_grad:
        twice = torch.autograd.grad(again, [*live.values()], allow_unused=True)
    return results, dict(zip(live, once, strict=True)), dict(zip(live, twice, strict=True))


def weighed(x):
    return (x * torch.arange(1, x.numel() + 1, dtype=x.dtype).reshape(x.shape).cos()).sum()


def finite(call, inputs, what=""):
    results, *derivatives = differentiated(call, inputs)
    assert all(x.isfinite().all() for x in results), f"{what}: value"
    for order, grads in enumerate(derivatives, 1):
        for key, x in grads.items():
            assert x is None or x.isfinite().all(), f"{what}: derivative {order} in {key}"


def of_td(call, td, hyper):
    """The call as a function of all floats, and these."""
    inputs = floats(td)

    def run(live):
        entries = {key: live[key] for key in inputs}
        out = call(changed(td, entries), {name: live["hyper", name] for name in hyper})
        return [out[key] for key in out.keys()]

    return run, {**inputs, **{("hyper", name): x for name, x in hyper.items()}}


def policy_td(**policy):
    """A td that every policy loss reads, but for its policy."""
    draw = torch.Generator().manual_seed(0)

    def normal(*more):
        return torch.randn(*SIZE, *more, generator=draw)

    scalars = "state_value advantage value_target pi_hat".split()
    following = {"reward": normal(), "done": normal() > 1, "terminated": normal() > 1.5}
    entries = {**{name: normal() for name in scalars}, "action_log_prob": -normal().abs()}
    entries |= {"prediction": normal(4), "y_hat": normal(4).softmax(-1), "action_value": normal(3)}
    entries |= {"action_prediction": normal(3, 4), **policy}
    following = TensorDict({**following, "state_value": normal()}, SIZE)
    return TensorDict({**entries, "next": following}, SIZE)
