"""A converted module gives what the module gives: outputs, gradients, buffers; mapped and twice."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

from paramtree import (
    autodiff,
    check_grads,
    compose,
    from_module,
    grad,
    hvp,
    rng,
    tree,
    value_and_grad,
    vmap,
)
from tests.paramtree.nn_module.modules import (
    D,
    ResNet18,
    Roundabout,
    Stateful,
    Tied,
    assert_close,
    by_name,
    draw,
    itself,
    row,
    scalar,
    seeded,
    spread,
)


def transformer(train):
    module = nn.Transformer(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)
    return seeded(module).train(train)


MASK = nn.Transformer.generate_square_subsequent_mask(4, dtype=D)
CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), draw("x", 5, 3)),
    "resnet train": (lambda: ResNet18().train(), draw("image", 3, 3, 33, 33)),
    "resnet eval": (lambda: ResNet18().eval(), draw("image", 3, 3, 33, 33)),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()),
        draw("x", 5, 3),
    ),
    "instance norm": (
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        draw("x", 2, 3, 5),
    ),
    "transformer": (
        lambda: transformer(False),
        (draw("src", 2, 5, 8), draw("tgt", 2, 4, 8), {"tgt_mask": MASK}),
    ),
    "lstm": (lambda: nn.LSTM(3, 4, 2, bidirectional=True), draw("x", 5, 2, 3)),
    "lstm with a projection and states": (
        lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True),
        (draw("x", 2, 5, 3), (draw("h", 1, 2, 2), draw("c", 1, 2, 4))),
    ),
    "gru": (lambda: nn.GRU(3, 4, 2, bidirectional=True), draw("x", 5, 2, 3)),
    "rnn": (lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False), draw("x", 5, 3)),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), draw("x", 2, 3)),
    "gru cell": (lambda: nn.GRUCell(3, 4, bias=False), (draw("x", 2, 3), draw("h", 2, 4))),
    "tied": (Tied, torch.tensor([1, 4, 0])),
    "stateful": (Stateful, draw("x", 4, 3)),
    "roundabout": (Roundabout, draw("x", 4, 3)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), draw("x", 5, 3)),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh()),
        draw("x", 5, 3),
    ),
    "weight norm of an lstm": (
        lambda: parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
        draw("x", 5, 2, 3),
    ),
    "embedding of a greatest norm": (
        lambda: nn.Embedding(4, 3, max_norm=0.2),
        torch.tensor([1, 2, 2]),
    ),
}
# The last two have gradients of torch's that are not the derivative of the output.
ROUGH = {"resnet train", "resnet eval", "rnn", "spectral norm", "embedding of a greatest norm"}
SMOOTH = sorted(set(CASES) - ROUGH)
NAMES = sorted(CASES)


def case(name):
    make, batch = CASES[name]
    module = seeded(make())
    return module, *from_module(module), batch


@pytest.mark.parametrize("name", NAMES)
def test_output_gradient_and_buffers_are_the_modules(name):
    module, model, params, buffers, batch = case(name)
    before, state = by_name(params), torch.random.get_rng_state()
    values = {name: x.clone() for name, x in {**module.state_dict(), **before}.items()}
    inputs = [x.clone() for x in tree_leaves(batch)]
    out, after = model.apply(params, buffers, batch)
    slope = grad(lambda p: scalar(model.apply(p, buffers, batch)[0]))(params)
    wanted, grads, held = itself(module, batch)
    assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    assert_close({k: grads[k] for k in before}, by_name(slope), rtol=1e-10, atol=1e-12)
    assert_close({k: held[k] for k in by_name(after)}, by_name(after), rtol=1e-12, atol=1e-12)
    assert after.is_locked and (after is buffers or tree.paths(after) == tree.paths(buffers))
    assert_close({**module.state_dict(), **by_name(params)}, values, rtol=0, atol=0)
    assert_close(tree_leaves(batch), inputs, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_maps_over_stacked_parameters_and_over_inputs(name):
    _, model, params, buffers, batch = case(name)
    if name == "transformer":
        model, batch = _with_mask(model), batch[:2]
    n, has = 2, bool(tree.leaves(buffers))
    many, states, batches = spread(params, n), spread(buffers, n), spread(batch, n)
    close = {"rtol": 1e-9, "atol": 1e-10}
    both = vmap(model.apply, (0, 0 if has else None, 0))(many, states, batches)
    inputs = vmap(model.apply, (None, None, 0))(params, buffers, batches)
    for i in range(n):
        p, b, x = many[i], states[i] if has else buffers, row(batches, i)
        one, _ = wanted = model.apply(p, b, x)
        assert_close(row(both[0], i), one, **close)
        assert_close([y[i] for y in tree.leaves(both[1])], tree.leaves(wanted[1]), **close)
        assert_close(row(inputs[0], i), model.apply(params, buffers, x)[0], **close)


@pytest.mark.parametrize("name", ["batch norm", "lstm", "transformer", "resnet eval"])
def test_gradient_inside_of_a_map(name):
    _, model, params, buffers, batch = case(name)
    many, slope = spread(params, 2), grad(lambda p: scalar(model.apply(p, buffers, batch)[0]))
    mapped = vmap(slope)(many)
    for i in range(2):
        assert_close(tree.leaves(mapped[i]), tree.leaves(slope(many[i])), rtol=1e-8, atol=1e-9)


def _with_mask(model):
    def apply(params, buffers, batch):
        return model.apply(params, buffers, (*batch, {"tgt_mask": MASK}))

    return model._replace(apply=apply)


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative(name):
    _, model, params, buffers, batch = case(name)

    def slope(p):
        return grad(lambda p: scalar(model.apply(p, buffers, batch)[0]))(p)

    vector = tree.map(lambda x: draw("v", *x.shape), params)
    ours = hvp(lambda p: scalar(model.apply(p, buffers, batch)[0]), params, vector)
    ends = [slope(tree.map(lambda p, v, h=h: p + h * v, params, vector)) for h in (1e-5, -1e-5)]
    central = tree.map(lambda a, b: (a - b) / 2e-5, *ends)
    assert_close(tree.leaves(ours), tree.leaves(central), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["lstm", "gru", "weight norm", "batch norm"])
def test_second_derivative_by_torch_func(name):
    _, model, params, buffers, batch = case(name)
    loss = lambda p: scalar(model.apply(p, buffers, batch)[0])  # noqa: E731
    leaves, structure = tree.flatten(params)
    flat = lambda *xs: loss(tree.unflatten(structure, xs))  # noqa: E731
    vector = tuple(draw("v", *x.shape) for x in leaves)
    numbers = tuple(range(len(leaves)))

    def directional(*xs):
        slopes = torch.func.grad(flat, numbers)(*xs)
        return sum((a * b).sum() for a, b in zip(slopes, vector, strict=True))

    ours = torch.func.grad(directional, numbers)(*leaves)
    wanted = hvp(loss, params, tree.unflatten(structure, vector))
    assert_close(list(ours), tree.leaves(wanted), rtol=1e-8, atol=1e-9)


def test_gradient_in_the_inputs():
    _, model, params, buffers, (src, tgt, _) = case("transformer")
    check_grads(lambda s, t: model(params, buffers, (s, t)), src, tgt, max_entries=4)
    _, model, params, buffers, x = case("lstm")
    check_grads(lambda x: model(params, buffers, x)[0], x, max_entries=4)


def test_packed_sequences_alone_and_mapped():
    packed = pack_sequence([draw("a", 4, 3), draw("b", 2, 3), draw("c", 2, 3), draw("d", 1, 3)])
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        module = seeded(kind(3, 4, 2, bidirectional=True))
        model, params, buffers = from_module(module)
        start = draw("h", 4, 4, 4)
        batch = packed, (start, draw("c", 4, 4, 4)) if kind is nn.LSTM else start
        out, state = model(params, buffers, batch)
        assert isinstance(out, PackedSequence)
        wanted, last = module(*batch)
        assert_close((out.data, state), (wanted.data, last))
        many = spread(params, 2)

        def called(p, model=model, buffers=buffers, batch=batch):
            out, state = model(p, buffers, batch)
            return out.data, state

        mapped = vmap(called)(many)
        for i in range(2):
            assert_close(row(mapped, i), called(many[i]), rtol=1e-10, atol=1e-12)


def test_state_goes_round_and_carries_gradient():
    module, model, params, buffers, x = case("stateful")
    out, after = model.apply(params, buffers, x)
    assert after["mask"] is buffers["mask"] and after["hidden"].shape == (4, 3)
    assert float(after["count"] - buffers["count"]) == 1.0

    def twice(p):
        _, held = model.apply(p, buffers, x)
        return model.apply(p, held, x)[0].sum()

    clone = copy.deepcopy(module)
    clone(x)
    wanted = clone(x)
    (slope,) = torch.autograd.grad(wanted.sum(), [clone.w])
    assert_close(model.apply(params, after, x)[0], wanted)
    assert_close(grad(twice)(params)["w"], slope)
    with pytest.raises(ValueError, match=r"updates its buffers \(book, count, hidden, mean\)"):
        model(params, buffers, x)


def test_evaluation_gives_the_buffers_back_themselves():
    module, model, params, buffers, x = case("resnet eval")
    assert model.apply(params, buffers, x)[1] is buffers
    with torch.inference_mode():
        assert model.apply(params, buffers, x)[1] is buffers
    out = vmap(model, (0, None, None))(spread(params, 2), buffers, x)
    assert_close(out[0], model(params, buffers, x), rtol=1e-9, atol=1e-10)


def test_what_is_given_is_never_written_to():
    class Overwrites(nn.Module):
        def forward(self, x, more):
            x /= 2
            x.relu_()
            more["y"] += 1
            return x + more["y"]

    x, y = draw("x", 4, 3), draw("y", 4, 3)
    kept = x.clone(), y.clone()
    for module in (Overwrites(), nn.Sequential(nn.ReLU(inplace=True), nn.Hardtanh(inplace=True))):
        model, params, buffers = from_module(module)
        model(params, buffers, (x, {"y": y}, {}) if isinstance(module, Overwrites) else x)
        assert_close((x, y), kept, rtol=0, atol=0)

    class Clamps(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.w, self.how = nn.Parameter(torch.ones(3, dtype=D) * 2), how

        def forward(self, x):
            self.how(self.w)
            return x * self.w

    def assigned(w):
        w.data = torch.zeros(3, dtype=D)

    for how in (lambda w: w.data.clamp_(-1, 1), lambda w: w.detach().__setitem__(0, 1.0), assigned):
        model, params, buffers = from_module(Clamps(how))
        with pytest.raises(
            ValueError, match="from_module: Clamps writes in place .* parameter 'w'"
        ):
            model(params, buffers, x)
        assert_close(params["w"], torch.full((3,), 2.0, dtype=D), rtol=0, atol=0)

    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            self.w = nn.Parameter(x)
            return x

    model, params, buffers = from_module(Replaces())
    with pytest.raises(ValueError, match="Replaces replaced its parameter w in forward"):
        model(params, buffers, x)


def test_buffers_that_come_and_go_are_refused():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", None)

        def forward(self, x):
            self.cache = x
            return x

    class New(nn.Module):
        def forward(self, x):
            self.register_buffer("extra", x)
            return x

    for module, text in (
        (Lazy(), "made cache a Tensor, it was None"),
        (New(), "buffers extra, not"),
    ):
        model, params, buffers = from_module(module)
        with pytest.raises(ValueError, match=f"changed which buffers there are: .*{text}"):
            model(params, buffers, torch.ones(2))


def test_hooks_fire_as_in_the_module():
    seen = []
    module = seeded(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    module[0].register_forward_pre_hook(lambda m, args: seen.append("before"))
    module[0].register_forward_hook(lambda m, args, y: y.mul(2))
    module[1].register_forward_hook(lambda m, a, k, out: seen.append("after"), with_kwargs=True)
    module.register_full_backward_hook(lambda m, given, out: seen.append("backward"))
    module[1].register_full_backward_pre_hook(lambda m, out: (out[0] * 3,))
    x = draw("x", 5, 3).requires_grad_()
    leaves = list(module.parameters())
    out = module(x)
    wanted = torch.autograd.grad(out.sum(), [x, *leaves])
    expected, seen[:] = list(seen), []
    model, params, buffers = from_module(module)
    ours, slopes = grad(lambda x, p: model(p, buffers, x).sum(), (0, 1))(x, params)
    assert seen == expected == ["before", "after", "backward"]
    assert_close([ours, *tree.leaves(slopes)], [wanted[0], wanted[2], wanted[1]])
    assert_close(model(params, buffers, x), out)


def test_a_cache_of_parametrizations_is_refused():
    _, model, params, buffers, x = case("weight norm")
    with parametrize.cached(), pytest.raises(ValueError, match="inside torch.nn.utils.parametrize"):
        model(params, buffers, x)


def test_a_hidden_way_to_a_parameter_is_refused_when_it_is_taken():
    class Helper:
        def __init__(self, owner):
            self.owner = owner

    class Hidden(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
            self.helper, self.how = Helper(self), how

        def forward(self, x):
            return self.how(x, self.helper.owner.w)

    for how in (
        torch.mul,
        lambda x, w: torch.cat([x[0], w]),
        lambda x, w: torch.add(torch.add(x, other=x), other=w),
    ):
        model, params, buffers = from_module(Hidden(how))
        with pytest.raises(ValueError, match="Hidden reaches 'w' of the module itself"):
            model(params, buffers, torch.ones(2, 3))


def test_threads_calls_inside_of_calls_and_exceptions_leave_no_trace():
    module, model, params, buffers, x = case("resnet train")
    many = [row for row in tree.unstack(spread(params, 3))]
    wanted, wrong = [model.apply(p, buffers, x)[0] for p in many], []

    def work(i):
        for _ in range(3):
            if not torch.equal(model.apply(many[i], buffers, x)[0], wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with pytest.raises(RuntimeError) as error:
        model.apply(params, buffers, x[:, :2])
    note = str(error.value).split("; ")[-1]
    assert note.startswith(
        "from_module: in Conv2d at 'conv1' of ResNet18 with parameters weight (4, 3,"
    )
    assert torch.equal(model.apply(many[0], buffers, x)[0], wanted[0])

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=D))

        def forward(self, x):
            if x.dim() == 1:
                return x * self.w
            inner = vmap(inside, (0, None, None))(spread(values, 2), nothing, x[0])
            return inner.sum(0) * self.w

    inside, values, nothing = from_module(Nested())
    out = inside(values, nothing, draw("x", 2, 3))
    assert_close(out, (1 + 1.05) * draw("x", 2, 3)[0])


def test_recomputed_by_a_checkpoint():
    _, model, params, buffers, x = case("mlp")

    def loss(p):
        return scalar(model(p, buffers, x))

    ours = grad(lambda p: autodiff.checkpoint(loss)(p))(params)
    assert_close(tree.leaves(ours), tree.leaves(grad(loss)(params)))


def test_attention_in_evaluation_has_one_value():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=D)
    model, params, buffers = from_module(nn.TransformerEncoder(layer, 1).eval())
    hidden = torch.tensor([[False, False, False, True, True], [False, False, True, True, True]])
    batch = draw("x", 2, 5, 8), {"src_key_padding_mask": hidden}

    def size(params):
        return model.apply(params, buffers, batch)[0].square().sum()

    torch.testing.assert_close(size(params), value_and_grad(size)(params)[0])


class Stale(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)
        self.doubled = self.inner.weight * 2

    def forward(self, x):
        return x @ self.doubled.T


def test_what_was_computed_of_parameters_before_is_no_constant():
    model, params, buffers = from_module(Stale())
    with pytest.raises(ValueError, match="Stale reaches 'doubled' of .* computed before"):
        model.apply(params, buffers, torch.ones(2, 3))


def test_a_wrong_size_inside_of_a_larger_model_says_where():
    inner, *_ = from_module(nn.Sequential(nn.Linear(4, 2)), reset=None)
    net = compose(head=inner)
    params, buffers = net.init(rng.key(0))
    text = r"Linear at '0' of Sequential with parameters weight \(2, 4\), bias \(2,\); in head"
    with pytest.raises(RuntimeError, match=text):
        net(params, buffers, torch.ones(5, 7))
