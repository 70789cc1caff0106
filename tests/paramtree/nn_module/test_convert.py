"""Names, ties, modes, ways to give arguments, what is refused, and the way back to a module."""

import gc
import weakref

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import parametrizations

from paramtree import from_module, nn_module, rng, to_module, tree
from tests.paramtree.nn_module.modules import (
    D,
    ResNet18,
    Stateful,
    Tied,
    assert_close,
    by_name,
    draw,
    seeded,
)


def layers():
    return seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def test_names_are_the_modules_and_nest_by_its_sub_modules():
    module = seeded(ResNet18())
    _, params, buffers = from_module(module)
    assert set(by_name(params)) == {name for name, _ in module.named_parameters()}
    assert set(by_name(buffers)) == {name for name, _ in module.named_buffers()}
    assert params["layer2", "0", "conv1"].is_locked and buffers.is_locked
    assert_close(params["layer2"]["0"]["conv1"]["weight"], module.layer2[0].conv1.weight.detach())
    _, params, buffers = from_module(seeded(Stateful()))
    assert sorted(buffers.keys()) == ["book", "count", "hidden", "mask", "mean"]  # one not saved


def test_trees_are_copies_and_keep_the_module_no_longer_alive():
    module = layers()
    model, params, buffers = from_module(module)
    kept = params.clone()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
        module[1].running_mean.add_(1)
    assert bool((params == kept).all())
    assert not any(x.requires_grad for x in tree.leaves(params))
    held = weakref.ref(module), weakref.ref(module[0].weight)
    del module, p
    gc.collect()
    assert held[0]() is None and held[1]() is None
    assert model.apply(params, buffers, draw("x", 5, 3))[0].shape == (5, 2)


def test_later_changes_of_the_module_are_not_seen():
    module, x = seeded(nn.Sequential(nn.Linear(3, 3), nn.Tanh())), draw("x", 5, 3)
    model, params, buffers = from_module(module)
    wanted = model(params, buffers, x)
    module[0].register_forward_hook(lambda m, args, y: y.mul(100))
    module.append(nn.ReLU())
    module[1].training = False
    assert_close(model(params, buffers, x), wanted, rtol=0, atol=0)


def test_ties_are_one_leaf_and_said():
    module = seeded(Tied())
    ties = {
        "encoder.weight": ["decoder.weight"],
        "middle.bias": ["again.bias"],
        "middle.weight": ["again.weight"],
    }
    assert nn_module.tied(module) == ties
    model, params, buffers = from_module(module)
    assert sorted(by_name(params)) == ["encoder.weight", "middle.bias", "middle.weight"]
    more = tree.merge(params, tree.new({"decoder": tree.new({"weight": torch.ones(5, 3)})}))
    text = "hold an unknown decoder.weight; decoder.weight is tied to encoder.weight"
    with pytest.raises(ValueError, match=text):
        model(more, buffers, torch.tensor([1]))
    back = to_module(module, params)
    assert back.decoder.weight is back.encoder.weight and back.again is back.middle


def test_buffers_can_be_tied_and_stay_so():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.other = seeded(nn.BatchNorm1d(3)), seeded(nn.BatchNorm1d(3))
            self.other.running_mean = self.norm.running_mean

        def forward(self, x):
            return self.other(self.norm(x))

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("a", torch.zeros(()))
            self.register_buffer("b", self.a)

        def forward(self, x):
            self.b = self.b + 1
            return x

    module, x = Shared(), draw("x", 5, 3)
    assert nn_module.tied(module) == {"norm.running_mean": ["other.running_mean"]}
    model, params, buffers = from_module(module)
    _, after = model.apply(params, buffers, x)
    module(x)
    assert_close(after["norm", "running_mean"], module.norm.running_mean)
    model, params, buffers = from_module(Parts())
    with pytest.raises(ValueError, match="gave b another value than a, its twin"):
        model(params, buffers, x)


def test_two_views_of_one_memory_are_tied_and_parts_of_it_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = nn.Parameter(module[0].weight.data)
    assert nn_module.tied(module) == {"0.weight": ["1.weight"]}
    module[1].bias = nn.Parameter(module[0].weight.data[0])
    text = "'1.bias' and '0.weight' share a part of their memory"
    for fn in (from_module, nn_module.tied):
        with pytest.raises(ValueError, match=f"{fn.__name__}: {text}"):
            fn(module)
    whole = torch.zeros(4)
    module[1].bias, module[0].bias = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])
    assert sorted(by_name(from_module(module)[1])) == ["0.bias", "0.weight", "1.bias"]


def test_modes_are_the_modules_or_those_asked_for():
    module, x = layers(), draw("x", 5, 3)
    module[1].eval()
    states = {}
    for train in (None, False, True):
        model, params, buffers = from_module(module, train=train)
        out, after = model.apply(params, buffers, x)
        states[train] = after is buffers, out
    assert (states[None][0], states[False][0], states[True][0]) == (True, True, False)
    assert_close(states[None][1], states[False][1])
    assert not torch.allclose(states[None][1], states[True][1])
    assert module.training and not module[1].training

    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model, params, buffers = from_module(Frozen(*layers()), train=True)
    assert model.apply(params, buffers, x)[1] is buffers


def test_ways_to_give_arguments():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, a, b=None, *, scale=1.0):
            return {"out": (self.linear(a) * scale, b)}

    module, x = seeded(Many()), draw("x", 2, 3)
    model, params, buffers = from_module(module)
    wanted = module.linear(x) * 2.0
    for batch in ((x, 5, {"scale": 2.0}), {"a": x, "b": 5, "scale": 2.0}):
        out = model(params, buffers, batch)["out"]
        assert_close(out, (wanted, 5))
    assert_close(model(params, buffers, x)["out"], (wanted / 2, None))
    assert_close(model(params, buffers, (x, {"q": 1}, {}))["out"], (wanted / 2, {"q": 1}))


def test_attributes_that_forward_sets_are_gone_and_shared_lists_are_shared():
    class Layer(nn.Module):
        def __init__(self, losses):
            super().__init__()
            self.losses, self.calls = losses, 0

        def forward(self, x):
            self.calls += 1
            self.losses.append(x.sum())
            return x * self.calls

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.losses = []
            self.a, self.b = Layer(self.losses), Layer(self.losses)

        def forward(self, x):
            return self.b(self.a(x)) + sum(self.losses)

    module, x = Whole(), torch.ones(3)
    model, params, buffers = from_module(module)
    for _ in range(2):
        assert_close(model(params, buffers, x), torch.full((3,), 7.0))
    assert module.losses == [] and module.a.calls == 0


# -------------------------------------------------------------------------------------- refusals


def test_what_is_not_an_open_module_is_refused():
    for module, text in (
        (nn.LazyLinear(3), "'weight' of LazyLinear has no shape yet"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d()), "'1.weight' of LazyBatchNorm1d"),
    ):
        with pytest.raises(ValueError, match=f"from_module: {text}"):
            from_module(module)
    for module, text in (
        (3, "module is a int, expected a torch.nn.Module"),
        (
            torch.compile(nn.Linear(2, 2), backend="eager"),
            "OptimizedModule: compiled code holds its own module",
        ),
        (nn.Sequential(nn.DataParallel(nn.Linear(2, 2))), "module at '0' is a DataParallel: it"),
    ):
        with pytest.raises(TypeError, match=text):
            from_module(module)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_module_is_refused():
    module = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="a TorchScript program holds its own tensors"):
        from_module(module)


def test_wrong_trees_are_refused_by_name_and_shape():
    model, params, buffers = from_module(layers(), train=True)
    x = draw("x", 5, 3)
    less = tree.exclude(params, "0.bias")
    more = tree.merge(params, tree.new({"extra": torch.ones(1)}))
    twice = tree.stack([params, params])
    narrow = tree.replace(params, {"2.weight": torch.ones(2, 3, dtype=D)})
    for given, text in (
        (less, "params lack 0.bias; the Sequential that was converted has 6 leaves"),
        (more, "params hold an unknown extra; the Sequential"),
        (buffers, "params lack 0.bias, 0.weight, .* and 1 more; hold an unknown 1.num_batches"),
        (twice, r"params.0.bias has shape \(2, 4\), expected \(4,\) .*map over stacked ones"),
        (narrow, r"params.2.weight has shape \(2, 3\), expected \(2, 4\) \(from the Sequential"),
    ):
        with pytest.raises(ValueError, match=f"from_module: {text}"):
            model.apply(given, buffers, x)
    with pytest.raises(ValueError, match=r"from_module: buffers.1.num_batches_tracked has shape"):
        model.apply(params, tree.stack([buffers, buffers]), x)
    with pytest.raises(TypeError, match="params is a dict, expected a TensorDict"):
        model.apply({}, buffers, x)
    with pytest.raises(RuntimeError) as error:
        model.apply(params, buffers, draw("x", 5, 2))
    note = str(error.value).split("; ")[-1]
    assert (
        note
        == "from_module: in Linear at '0' of Sequential with parameters weight (4, 3), bias (4,)"
    )


def test_a_wrong_key_or_a_taken_name_is_refused():
    with pytest.raises(TypeError, match="from_module: key is torch.float32"):
        from_module(layers(), key=torch.ones(2))
    with pytest.raises(ValueError, match="the module has buffers named 'key'"):
        from_module(nn.ModuleDict({"key": nn.BatchNorm1d(2)}), key=rng.key(0))
    model, params, buffers = from_module(layers(), key=rng.key(0))
    wrong = tree.replace(buffers, {"key": rng.split(rng.key(0), 2)})
    with pytest.raises(ValueError, match=r"buffers.key has shape \(2, 2\), expected \(2,\)"):
        model.apply(params, wrong, draw("x", 5, 3))


# ------------------------------------------------------------------------------------ the way back


@pytest.mark.parametrize(
    "make",
    [
        layers,
        lambda: seeded(ResNet18()),
        lambda: seeded(Tied()),
        lambda: seeded(Stateful()),
        lambda: seeded(nn.LSTM(3, 4, 2, bidirectional=True)),
        lambda: seeded(parametrizations.weight_norm(nn.Linear(3, 4))),
        lambda: seeded(nn.Transformer(8, 2, 1, 1, 16, batch_first=True)),
    ],
)
def test_round_trip_is_exact(make):
    module = make()
    _, params, buffers = from_module(module)
    params = tree.map(lambda x: x * 2, params)
    kept = {name: x.clone() for name, x in module.state_dict().items()}
    back = to_module(module, params, buffers)
    _, again, states = from_module(back)
    assert type(back) is type(module) and back is not module
    assert_close(by_name(again), by_name(params), rtol=0, atol=0)
    assert_close(by_name(states), by_name(buffers), rtol=0, atol=0)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in back.parameters())
    assert list(back.state_dict()) == list(module.state_dict())
    assert_close(module.state_dict(), kept, rtol=0, atol=0)
    with torch.no_grad():
        for p in back.parameters():
            p.add_(1)
    assert_close(by_name(again), by_name(params), rtol=0, atol=0)


def test_the_new_module_works_and_shares_no_list_or_hook():
    module, x = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh())), draw("x", 5, 3)
    module[0].bias.requires_grad_(False)
    module.note = ["a"]
    module[1].register_forward_hook(lambda m, args, y: y.mul(2))
    model, params, buffers = from_module(module)
    params = tree.map(lambda p: p + 1, params)
    back = to_module(module, params, buffers)
    assert_close(back(x), model(params, buffers, x))
    assert not back[0].bias.requires_grad and back[0].weight.requires_grad
    back.note.append("b")
    back[1].register_forward_hook(lambda m, args, y: y.mul(100))
    assert module.note == ["a"] and len(module[1]._forward_hooks) == 1
    assert_close(module(x), model(*from_module(module)[1:], x))
    back = to_module(seeded(nn.LSTM(3, 4)), from_module(seeded(nn.LSTM(3, 4)))[1])
    assert back._flat_weight_refs[0]() is back.weight_ih_l0
    optimizer = torch.optim.SGD(back.parameters(), 0.1)
    before = back(x[None])[0].detach()
    back(x[None])[0].sum().backward()
    optimizer.step()
    assert not torch.allclose(back(x[None])[0], before)


def test_to_module_takes_other_dtypes_and_a_key_and_refuses_other_names():
    module = layers()
    model, params, buffers = from_module(module, key=rng.key(0))
    assert to_module(module, tree.map(lambda p: p.float(), params))[0].weight.dtype == torch.float32
    assert_close(
        by_name(from_module(to_module(module, params, buffers))[2]), by_name(buffers.exclude("key"))
    )
    with pytest.raises(ValueError, match="to_module: params lack 0.bias"):
        to_module(module, tree.exclude(params, "0.bias"))
    with pytest.raises(ValueError, match="to_module: buffers lack 1.running_var"):
        to_module(module, params, tree.exclude(buffers, "1.running_var"))
    with pytest.raises(TypeError, match="to_module: buffers is a dict"):
        to_module(module, params, {})
    with pytest.raises(ValueError, match=r"to_module: params.0.bias has shape \(2, 4\)"):
        to_module(module, tree.stack([params, params]))


def test_works_on_the_meta_device_and_with_an_empty_module():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model, params, buffers = from_module(module, key=rng.key(0, device="meta"))
    out, _ = model.apply(params, buffers, torch.ones(5, 3, device="meta"))
    assert out.shape == (5, 4) and out.is_meta
    model, params, buffers = from_module(nn.Identity())
    assert_close(model(params, buffers, draw("x", 2)), draw("x", 2))
    assert isinstance(params, TensorDict) and not tree.leaves(params)
