# pyright: reportArgumentType=false, reportCallIssue=false
import copy

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from losses import a2c_loss, add_advantage, as_module, lpg_agent_loss, total


def test_total_adds_the_losses_alone():
    td = TensorDict({"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0), "entropy": 5.0}, [])
    assert total(td) == 3
    nested = td.set("more", TensorDict({"loss_c": torch.tensor(7.0)}, []))
    assert total(nested) == 3


def test_total_carries_gradient_and_leaves_the_td_alone(trajectory, variant):
    x = torch.tensor(2.0, dtype=torch.float64)

    def f(x):
        return total(TensorDict({"loss_a": x.square(), "loss_b": 3 * x}, []))

    assert_close(variant(torch.func.grad(f))(x), 2 * x + 3)
    parts = TensorDict({"loss_a": x.clone(), "loss_b": x.clone()}, [])
    total(parts)
    assert_close(parts["loss_a"], x)


@pytest.mark.parametrize(
    ("td", "error", "text"),
    [
        (
            TensorDict({"entropy": 1.0, "a": 2.0}, []),
            ValueError,
            "'loss_'; its keys are a, entropy",
        ),
        (TensorDict({}, []), ValueError, "its keys are none"),
        ({"loss_a": 1.0}, TypeError, "td is a dict, expected a TensorDict"),
    ],
)
def test_total_on_bad_input(td, error, text):
    with pytest.raises(error, match=f"^total: .*{text}"):
        total(td)


def test_a_module_gives_what_the_loss_gives(trajectory):
    td = trajectory(3)
    module = as_module(a2c_loss, torch.distributions.Categorical, gamma=0.9, lmbda=0.8)
    expected = a2c_loss(td, gamma=0.9, lmbda=0.8)
    for name in expected.keys():
        assert_close(module(td)[name], expected[name])
    assert not list(module.parameters()) and "gamma=0.9" in repr(module)


def test_hyper_parameters_are_registered_and_read_at_each_call(trajectory):
    td = trajectory(3)
    gamma = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
    leaf = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    module = as_module(a2c_loss, gamma=gamma, lmbda=0.8, entropy_coeff=leaf * 2)
    assert dict(module.named_parameters()) == {"gamma": gamma}
    assert set(dict(module.named_buffers())) == {"entropy_coeff"}
    total(module(td)).backward()
    assert gamma.grad.abs() > 0 and leaf.grad.abs() > 0

    def value(**changed):
        hyper = {"gamma": 0.9, "lmbda": 0.8, "entropy_coeff": 0.6, **changed}
        return total(a2c_loss(td, **hyper))

    assert_close(total(module(td)), value())
    other = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    module.gamma = other
    assert_close(total(module(td)), value(gamma=0.5))
    module.entropy_coeff = leaf * 3
    assert_close(total(module(td)), value(gamma=0.5, entropy_coeff=0.9))
    module.lmbda = other * 0.4  # was a float
    assert_close(total(module(td)), value(gamma=0.5, entropy_coeff=0.9, lmbda=0.2))
    other.grad = None
    total(module(td)).backward()
    assert other.grad.abs() > 0


def test_a_hyper_parameter_can_become_a_buffer(trajectory):
    td = trajectory(3)
    meta = torch.tensor(0.95, dtype=torch.float64, requires_grad=True)
    module = as_module(a2c_loss, gamma=None, lmbda=0.8)
    module.register_buffer("gamma", meta)
    module.register_buffer("critic_coeff", meta * 2)  # was not named at all
    total(module(td)).backward()
    assert meta.grad.abs() > 0
    assert_close(total(module(td)), total(a2c_loss(td, gamma=0.95, lmbda=0.8, critic_coeff=1.9)))
    assert set(module.state_dict()) == {"gamma", "critic_coeff"}


KINDS = {
    "a float": float,
    "a tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "a non-leaf tensor": lambda x: torch.tensor(x, dtype=torch.float64).requires_grad_() * 1,
    "a parameter": lambda x: nn.Parameter(torch.tensor(x, dtype=torch.float64)),
}


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("road", ["assigned", "registered"])
def test_any_kind_can_be_replaced_by_any(trajectory, before, after, road):
    td = trajectory(3)
    module = as_module(a2c_loss, lmbda=0.8, gamma=0.5)
    for kind, value in ((before, 0.7), (after, 0.9)):
        new = KINDS[kind](value)
        if road == "assigned" or kind == "a float":
            module.gamma = new
        elif kind == "a parameter":
            module.register_parameter("gamma", new)
        else:
            module.register_buffer("gamma", new)
        assert module.gamma is new
    assert_close(total(module(td)), total(a2c_loss(td, gamma=0.9, lmbda=0.8)))
    assert len(dict(module.named_parameters())) == (after == "a parameter")
    assert len(dict(module.named_buffers())) == (after in ("a tensor", "a non-leaf tensor"))


def test_one_tensor_may_be_two_hyper_parameters(trajectory):
    td, rate = trajectory(3), torch.tensor(0.9, dtype=torch.float64)
    for shared in (nn.Parameter(rate), rate):
        module = as_module(a2c_loss, gamma=shared, lmbda=shared)
        assert_close(total(module(td)), total(a2c_loss(td, gamma=0.9, lmbda=0.9)))


def test_in_a_sequence(trajectory):
    td = add_advantage(trajectory(3), 0.9, 0.8)

    class Scale(nn.Module):
        def forward(self, td):
            return td.copy().set("logits", 2 * td["logits"])

    net = nn.Sequential(Scale(), as_module(a2c_loss, entropy_coeff=0.1))
    assert_close(total(net(td)), total(a2c_loss(Scale()(td), entropy_coeff=0.1)))
    clone = copy.deepcopy(net)
    assert_close(total(clone(td)), total(net(td)))


def test_functional_call_reaches_the_hyper_parameters(trajectory):
    td = trajectory(3)
    module = as_module(lpg_agent_loss, prediction_coeff=nn.Parameter(torch.tensor(0.5).double()))

    def f(coeff):
        return total(torch.func.functional_call(module, {"prediction_coeff": coeff}, (td,)))

    expected = lpg_agent_loss(td)["prediction_kl"]
    assert_close(torch.func.grad(f)(torch.tensor(0.2).double()), expected)


def test_bad_hyper_parameters_are_named():
    with pytest.raises(TypeError, match="^as_module: a2c_loss: .*'gama'.*are gamma, lmbda, critic"):
        as_module(a2c_loss, gama=0.9)

    def odd(td, *, training=0.1):
        return td

    with pytest.raises(ValueError, match="^as_module: 'training' is an attribute of every module"):
        as_module(odd, training=0.2)
