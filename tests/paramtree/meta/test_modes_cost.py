"""What the ways to differentiate through an inner loop cost: runs of a step, and memory."""

import pytest

from paramtree import tree
from paramtree.meta import checkpointed, forward_mode, truncated, unrolled
from tests.benchmarks.bench_meta_modes import peak_memory
from tests.paramtree.meta.problems import adam, quadratic
from tests.paramtree.meta.ways import MODES


def counted(p):
    calls = []

    def step(hyper, state, k):
        calls.append(k)
        return p.step(hyper, state, k)

    return step, calls


@pytest.mark.parametrize(("name", "times"), [
    ("unrolled", 1), ("truncated", 1), ("forward_mode", 1), ("checkpointed", 2),
    ("segments_of_3", 4), ("one_segment", 1),
])  # fmt: skip
def test_how_often_a_step_is_run(name, times):
    p = quadratic()._replace(steps=50)
    step, calls = counted(p)
    MODES[name](step, p.outer, 50)(p.hyper, p.state)
    assert calls[:50] == list(range(50)) or name in ("checkpointed", "segments_of_3")
    assert max(calls.count(k) for k in range(50)) <= times
    assert min(calls.count(k) for k in range(50)) >= 1
    assert len(calls) > 50 * (times - 1)


@pytest.fixture(params=[False, True], ids=["plain", "requires_grad"])
def measured(request):
    """Peak memory of a mode with hyper-parameters that may require grad."""

    def measured(mode, steps, make=quadratic, **options):
        p = make()
        hyper = tree.map(lambda x: x.clone().requires_grad_(request.param), p.hyper)
        fn = mode(p.step, p.outer, steps, **options)
        return peak_memory(lambda: fn(hyper, p.state))

    return measured


def test_checkpointed_memory(measured):
    thousand = measured(checkpointed, 1000)
    assert thousand <= 3 * measured(checkpointed, 32)
    assert thousand <= measured(unrolled, 32)
    assert measured(checkpointed, 64, adam) <= measured(unrolled, 32, adam)


def test_checkpointed_memory_grows_as_the_square_root(measured):
    assert measured(checkpointed, 256) <= 4.2 * measured(checkpointed, 16)
    assert measured(checkpointed, 256, segment=2) <= measured(checkpointed, 256) / 1.5


def test_forward_mode_memory_is_constant(measured):
    for make, steps in ((quadratic, 300), (adam, 30)):
        assert measured(forward_mode, steps, make) <= 1.02 * measured(forward_mode, 10, make)


def test_truncated_memory_is_constant(measured):
    for make, steps in ((quadratic, 300), (adam, 30)):
        short = measured(truncated, 10, make, window=5)
        assert measured(truncated, steps, make, window=5) <= 1.02 * short


def test_the_meter_sees_a_graph_grow(measured):
    assert 7 <= measured(unrolled, 100) / measured(unrolled, 10) <= 12
