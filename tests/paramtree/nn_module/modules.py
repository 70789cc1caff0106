"""Modules that the tests of ``from_module`` convert, and what a module itself gives."""

import copy
import functools
import weakref

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from paramtree import rng, tree

D = torch.float64


def draw(name, *shape):
    return rng.normal(rng.fold_in(rng.key(5), name), shape, dtype=D)


def seeded(module):
    """The module in float64, its parameters and running statistics away from where they begin."""
    module = module.double()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, x in state.items():
            if x.is_floating_point():
                moved = 0.4 * rng.normal(rng.fold_in(rng.key(3), name), tuple(x.shape), dtype=D)
                x.copy_(moved.abs() + 0.5 if name.endswith("var") else moved)
    return module


class Block(nn.Module):
    """Two convolutions beside a shortcut, as in a ResNet of 18 layers."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet18(nn.Module):
    def __init__(self, width=4, n_out=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            stride = 1 if i == 0 else 2
            n_in, n = sizes[i : i + 2]
            setattr(self, f"layer{i + 1}", nn.Sequential(Block(n_in, n, stride), Block(n, n, 1)))
        self.fc = nn.Linear(sizes[-1], n_out)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class Tied(nn.Module):
    """A decoder with the encoder's weight, and one sub-module under two names."""

    def __init__(self):
        super().__init__()
        self.encoder, self.middle = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.encoder.weight
        self.again = self.middle

    def forward(self, x):
        return self.decoder(self.again(torch.tanh(self.middle(self.encoder(x)))))


class Stateful(nn.Module):
    """Buffers that forward writes to in all the ways there are, and one that it only reads."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("book", torch.ones(3))
        self.register_buffer("hidden", torch.zeros(1, 3))
        self.register_buffer("mask", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("missing", None)

    def forward(self, x):
        self.count += 1
        self.mean[1:].mul_(0.5).add_(x.mean(0)[1:])
        self.book.data.mul_(0.9)
        self.hidden = torch.tanh(x * self.w + self.hidden)
        return x * self.mask * self.w + self.mean + self.hidden + self.book


class Roundabout(nn.Module):
    """Reaches its parameters and sub-modules by every way that isn't an attribute of theirs."""

    def __init__(self):
        super().__init__()
        self.a, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)
        self.listed, self.nested = [self.a, self.linear.weight], {"x": (self.linear,)}
        self.bound = self.shifted
        self.closure = lambda x: x * self.a.sum()
        self.partial = functools.partial(Roundabout.shifted, self)
        self.weak = weakref.ref(self)
        self.lists = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))])
        self.dicts = nn.ParameterDict({"q": nn.Parameter(torch.ones(3))})
        self.__dict__["unregistered"] = nn.Sequential(self.linear, nn.Tanh())
        self.log = []

    def shifted(self, x):
        return x + self.a

    def forward(self, x):
        self.log.append(x)
        self.last = x
        y = self.bound(x) * self.listed[0] + self.closure(x) @ self.listed[1]
        y = y + self.nested["x"][0](self.partial(x)) + self.weak().a + self.unregistered(x)
        return y + self.lists[1] * self.dicts["q"] + self.lists[0].sum() + len(self.log)


def arguments(batch):
    """Positional and keyword arguments that a batch stands for."""
    if type(batch) is dict:
        return (), batch
    if type(batch) is not tuple:
        return (batch,), {}
    return (batch[:-1], batch[-1]) if type(batch[-1]) is dict else (batch, {})


def itself(module, batch):
    """What a copy of the module gives: output, gradient of ``scalar`` by name, buffers by name."""
    if not isinstance(module, Roundabout | nn.LSTM):  # which can't be copied, and change nothing
        module = copy.deepcopy(module)
    args, kwargs = arguments(batch)
    out = module(*args, **kwargs)
    named = dict(module.named_parameters())
    slopes = torch.autograd.grad(scalar(out), list(named.values()), allow_unused=True)
    pairs = zip(named.items(), slopes, strict=True)
    grads = {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}
    return out, grads, dict(module.named_buffers())


def scalar(out):
    """One number of an output, with another weight for each part."""
    parts = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return sum((x.sin() * (1 + i)).sum() for i, x in enumerate(parts))


def by_name(leaves):
    pairs = zip(tree.paths(leaves), tree.leaves(leaves), strict=True)
    return {".".join(path): x for path, x in pairs}


def assert_close(ours, wanted, **tolerance):
    """Nests of the same tensors."""
    a, b = tree_leaves(ours), tree_leaves(wanted)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if isinstance(y, torch.Tensor):
            torch.testing.assert_close(x, y, **tolerance)
        else:
            assert x == y


def row(nest, i):
    return tree_map(lambda x: x[i] if isinstance(x, torch.Tensor) else x, nest)


def spread(value, n):
    """A tree or nest n times along a new axis, each time a little different."""
    if hasattr(value, "batch_size"):
        return tree.stack([tree.map(lambda x, i=i: _moved(x, i), value) for i in range(n)])
    return tree_map(lambda x: torch.stack([_moved(x, i) for i in range(n)]), value)


def _moved(x, i):
    return x * (1 + 0.05 * i) if x.is_floating_point() else x
