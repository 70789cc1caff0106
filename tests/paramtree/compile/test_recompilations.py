"""How often a step is compiled when what goes into it changes.

Numbers in tensors cost nothing. Python's numbers are constants of the first graph and variables of
the second, and that is all, but where only a differentiated function reads them. Sizes are the
same, but where torch's own rules for vmap fix the size of the mapped axis. Counting needs no
derivatives of what was captured, so the graphs run as they are.
"""

import importlib
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, is_tensorclass

import losses
from paramtree import checkpoint, grad, nn, optim, rng, tree, vmap
from tests.contract.case import Reducer, trajectory
from tests.paramtree.compile.compiled import Compiled

D = torch.float64
NET = nn.mlp(2, 3, 1, activation=torch.tanh, dtype=D)
PARAMS, BUFFERS = NET.init(rng.key(0))


def drawn(k, *shape):
    return rng.normal(rng.fold_in(rng.key(1), k), shape, dtype=D)


def loss(params, x):
    return (NET(params, BUFFERS, x) - x.sum(-1, keepdim=True).sin()).square().mean()


def descend(optimizer, state, params, x):
    updates, state = optimizer.update(grad(loss)(params, x), state, params)
    return optim.apply_updates(params, updates), state


def adam_step(lr, state, params, x):
    return descend(optim.adam(lr), state, params, x)


def counting(fn):
    return Compiled(fn, backend="eager")


# ----------------------------------------------------------------------------- rates and optimizers


def test_ten_learned_rates_with_an_optimizer_of_each_share_a_graph():
    """Built inside: ``optim.adam(rate)``; counts, moments and data change from call to call too."""
    step, state, params = counting(adam_step), optim.adam().init(PARAMS), PARAMS
    for k in range(10):
        params, state = step.same(torch.tensor(0.01 * (k + 1)), state, params, drawn(k, 5, 2))
    assert step.graphs == 1 and int(state["adam", "count"]) == 10


def test_optimizers_made_outside_of_learned_rates_share_a_graph():
    state = optim.adam().init(PARAMS)
    made = [optim.adam(torch.tensor(0.01 * (k + 1))) for k in range(5)]
    calls = [(optimizer, state, PARAMS, drawn(k, 5, 2)) for k, optimizer in enumerate(made)]
    assert counting(descend).counts(calls) == [1] * 5


def test_functions_that_close_over_a_learned_rate_share_a_graph():
    """Each is given to ``torch.compile`` by itself; all have the code of one."""
    x, state = drawn(0, 5, 2), optim.adam().init(PARAMS)

    def closed(lr):
        return lambda params: adam_step(lr, state, params, x)

    step = counting(closed(torch.tensor(0.1)))
    step.same(PARAMS)
    for k in range(1, 5):
        function = closed(torch.tensor(0.1 * k))
        torch.compile(function, fullgraph=True, backend="eager")(PARAMS)
    assert step.graphs == 1


NUMBERS = {
    "adam": lambda a: optim.adam(a, 1 - a, 1 - a / 10, a / 1e3, weight_decay=a),
    "sgd": lambda a: optim.sgd(a, momentum=a, weight_decay=a),
    "clipped": lambda a: optim.chain(clip=optim.clip_by_global_norm(a), sgd=optim.sgd(a)),
    "linear": lambda a: optim.sgd(optim.linear(a, a / 2, 10)),
    "cosine": lambda a: optim.adamw(optim.warmup_cosine_decay(0.0, a, 3, 10)),
    "injected": lambda a: optim.inject_hyperparams(optim.adam)(lr=a),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_python_rates_are_constant_in_the_first_graph_and_free_in_the_second(name):
    def step(a, params, grads):
        optimizer = NUMBERS[name](a)
        return optimizer.update(grads, optimizer.init(params), params)

    calls = [(0.05 + 0.01 * k, PARAMS, tree.scale(PARAMS, 0.1 * k)) for k in range(1, 5)]
    assert counting(step).counts(calls) == [1, 2, 2, 2]


def test_optimizers_made_outside_of_python_rates_have_two_graphs():
    state = optim.adam().init(PARAMS)
    calls = [(optim.adam(0.1 + 0.01 * k), state, PARAMS, drawn(k, 5, 2)) for k in range(4)]
    assert counting(descend).counts(calls) == [1, 2, 2, 2]


def test_a_number_of_a_dictionary_that_only_a_differentiated_function_reads_is_a_constant():
    """torch makes no variable of a number that it first meets inside of a gradient."""

    def slope(weights, params, x):
        scaled = weights["outside"] * x
        return grad(lambda p: weights["inside"] * loss(p, scaled))(params)

    def counts(name, number):
        weights = [{"outside": 0.5, "inside": 0.5, name: number(0.1 * k)} for k in (1, 2, 3)]
        return counting(slope).counts([(w, PARAMS, drawn(k, 5, 2)) for k, w in enumerate(weights)])

    assert counts("outside", float) == [1, 2, 2]
    assert counts("inside", float) == [1, 2, 3]
    assert counts("inside", torch.tensor) == [1, 1, 1]


# -------------------------------------------------------------------------------- keys and counters


def test_counters_and_seeds_in_python_numbers_have_two_graphs():
    def noise(k, key):
        return rng.uniform(rng.fold_in(key, k), (3,)) + rng.normal(rng.key(k), (3,))

    assert counting(noise).counts([(k, rng.key(1)) for k in (3, 4, 0, 1, 7)]) == [1, 2, 2, 2, 2]


def test_a_periodic_copy_counts_in_python_numbers_or_in_tensors():
    def copy(k, new, old):
        return optim.periodic_update(new, old, k, 3)

    old = tree.map(torch.sin, PARAMS)
    calls = [(k, PARAMS, old) for k in (4, 5, 6, 7)]
    assert counting(copy).counts(calls) == [1, 2, 2, 2]
    assert counting(copy).counts([(torch.tensor(k), *rest) for k, *rest in calls]) == [1] * 4


# ------------------------------------------------------------------------------------------- trees


def test_wherever_a_tree_comes_from_it_is_the_same_to_compiled_code(tmp_path):
    checkpoint.save(tmp_path / "params.safetensors", PARAMS)
    both = tree.stack([PARAMS, PARAMS])
    step = counting(adam_step)
    rate, state, x = torch.tensor(0.1), optim.adam().init(PARAMS), drawn(0, 5, 2)
    after, _ = step(rate, state, PARAMS, x)
    nested = PARAMS.to_dict()
    origins = {
        "a compiled step": after,
        "a constructor": TensorDict(nested),
        "a constructor, locked": TensorDict(nested).lock_(),
        "a clone": PARAMS.clone(),
        "a file": checkpoint.load(tmp_path / "params.safetensors"),
        "an index": both[0],
        "unstack": tree.unstack(both)[1],
        "map": tree.map(torch.sin, PARAMS),
        "vmap": tree.unstack(vmap(lambda p: tree.scale(p, 2.0))(both))[0],
        "double": PARAMS.double(),
    }
    for params in origins.values():
        step.same(rate, state, params, x)
    assert step.graphs == 1


def test_names_that_share_their_tensors_are_a_program_of_their_own():
    """As where a target begins as the params' own tree; a clone of it costs no second graph."""

    def follow(params, target):
        return optim.incremental_update(params, target, 0.1)

    copy = tree.map(torch.clone, PARAMS)
    shared, apart = (PARAMS, PARAMS), (PARAMS, copy)
    assert counting(follow).counts([shared, apart, shared]) == [1, 2, 2]
    assert counting(follow).counts([apart, (copy, PARAMS)]) == [1, 1]


def test_types_that_eager_code_meets_meanwhile_are_no_matter():
    """tensordict lists the types it has met, and its own functions depend on how many."""
    step, state = counting(adam_step), optim.adam().init(PARAMS)
    args = torch.tensor(0.1), state, PARAMS, drawn(0, 5, 2)
    step.same(*args)
    assert not is_tensorclass(type("New", (), {}))
    step.same(*args)
    assert step.graphs == 1


# ------------------------------------------------------------------------------------------- sizes


def test_other_batch_sizes_have_two_graphs():
    state = optim.adam().init(PARAMS)
    calls = [(torch.tensor(0.1), state, PARAMS, drawn(k, k, 2)) for k in (4, 5, 7, 9)]
    assert counting(adam_step).counts(calls) == [1, 2, 2, 2]


def test_losses_of_other_batch_sizes_have_two_graphs():
    def judge(td):
        td = losses.add_advantage(td, 0.9, 0.8)
        return losses.total(losses.a2c_loss(td)) + losses.total(losses.value_loss(td))

    calls = [(trajectory(size, 3),) for size in (3, 4, 6, 7)]
    assert counting(judge).counts(calls) == [1, 2, 2, 2]


def test_other_numbers_of_tasks_have_two_graphs():
    def call(n):
        params, _ = vmap(NET.init)(rng.split(rng.key(0), n))
        return torch.rand(n), vmap(optim.adam().init)(params), params, drawn(n, n, 5, 2)

    assert counting(vmap(adam_step)).counts([call(n) for n in (3, 4, 6, 7)]) == [1, 2, 2, 2]


def test_torch_has_a_graph_for_each_size_of_a_mapped_gather():
    """So grid worlds and categorical policies under vmap have one for each number of tasks."""

    def call(n):
        return drawn(n, n, 7), rng.randint(rng.key(n), (n, 4), 0, 7)

    gather = torch.func.vmap(lambda table, index: table.gather(-1, index))
    assert counting(gather).counts([call(n) for n in (3, 4, 6)]) == [1, 2, 3]


# ------------------------------------------------------------------- hyper-parameters of every loss


def reducers():
    folder = Path(importlib.import_module("tests.contract.case").__file__).parent
    for file in sorted(folder.glob("losses_*.py")):
        for row in importlib.import_module(f"tests.contract.{file.stem}").ROWS:
            if getattr(row, "hyper", None) or getattr(row, "target_hyper", None):
                yield row


# Python's logarithm of a number makes a constant of it
LOGARITHMS = {"advantage_weight", "awr_loss", "bounded_log_alpha", "ppo_clip_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("row", list(reducers()), ids=lambda row: row.name)
def test_python_hyper_parameters_of_every_loss_have_two_graphs(row):
    reducer = isinstance(row, Reducer)
    hyper = {**row.hyper, **row.target_hyper} if reducer else row.hyper
    data = row.td() if reducer else dict(row.args())

    def call(hyper, data):
        if not reducer:
            return tree.leaves(row.call(data, hyper))  # a td of losses is not locked in there
        own = {name: hyper[name] for name in row.hyper}
        return losses.total(row.call(row.finished(data, hyper), own))

    calls = [({n: x * (1 - 0.01 * k) for n, x in hyper.items()}, data) for k in range(4)]
    wanted = [1, 2, 3, 4] if row.name in LOGARITHMS else [1, 2, 2, 2]
    assert counting(call).counts(calls) == wanted
