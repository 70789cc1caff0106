import pytest
import torch

from paramtree import grad, rng, tree, vmap
from paramtree.envs import replay_buffer

D = torch.float64


def steps(*size, start=0):
    """Steps that are told apart by each of their entries."""
    n = torch.Size(size).numel()
    number = torch.arange(start, start + n).reshape(size)
    seen = torch.stack([number, 2 * number], -1).double()
    deep = tree.new({"x": seen + 0.5, "reward": number.float()}, size)
    return tree.new({"observation": seen, "action": number, "next": deep}, size)


def kept(memory):
    """Numbers of the steps in a memory, whose entries all have to go together."""
    own = memory["steps"]
    number = own["action"]
    assert torch.equal(own["observation"][..., 1], 2.0 * number)
    assert torch.equal(own["next", "reward"], number.float())
    return number.tolist()


@pytest.mark.parametrize("donate", [False, True])
def test_it_is_a_ring_of_the_last_steps(donate):
    """Against Python's own list; pieces of many sizes, some larger than the ring."""
    replay = replay_buffer(7)
    memory, last, total = replay.init(steps(1)), [0] * 7, 0
    assert kept(memory) == last and memory["count"] == 0 and memory.is_locked
    for size in [(1,), (3,), (2, 3), (), (7,), (2, 2, 5), (4,), (1, 1), (30,)]:
        td = steps(*size, start=total)
        numbers = td["action"].flatten().tolist()
        for number in numbers:
            last[number % 7] = number
        total += len(numbers)
        memory = replay.add(memory, td, donate=donate)
        assert kept(memory) == last and memory["count"] == total
        assert memory["steps"].batch_size == (7,) and memory.is_locked
        assert memory["steps", "action"].dtype == torch.int64


def test_a_memory_that_is_not_given_up_stays():
    replay = replay_buffer(4)
    empty = replay.init(steps(1))
    one = replay.add(empty, steps(3, start=1))
    two = replay.add(one, steps(3, start=4))
    assert kept(empty) == [0] * 4 and kept(one) == [1, 2, 3, 0] and kept(two) == [5, 6, 3, 4]
    assert empty["count"] == 0 and one["count"] == 3


def test_one_that_is_given_up_is_written_to_and_can_no_longer_be_read():
    replay = replay_buffer(4)
    memory = replay.init(steps(1))
    where = memory["steps", "next", "x"].data_ptr()
    after = replay.add(memory, steps(3, start=1), donate=True)
    assert after["steps", "next", "x"].data_ptr() == where
    for read in (lambda: memory["count"], lambda: replay.sample(memory, rng.key(0), 2)):
        with pytest.raises(RuntimeError, match="replay_buffer.add: this tree was donated"):
            read()


def test_samples_are_uniform_over_what_is_there():
    replay = replay_buffer(8)
    memory = replay.add(replay.init(steps(1)), steps(5, start=1))
    td = replay.sample(memory, rng.key(0), 20_000)
    assert td.batch_size == (20_000,) and td.is_locked and td["next"].batch_size == (20_000,)
    assert torch.equal(td["observation"][:, 1], 2.0 * td["action"])
    assert torch.equal(td["next", "reward"], td["action"].float())
    share = torch.bincount(td["action"], minlength=7) / 20_000
    assert share[0] == share[6] == 0 and (share[1:6] - 0.2).abs().max() < 4.5 * 0.4 / 20_000**0.5
    pairs = torch.corrcoef(td["action"].double().view(2, -1))[0, 1]
    assert pairs.abs() < 4.5 / 10_000**0.5
    memory = replay.add(memory, steps(9, start=6))
    share = torch.bincount(replay.sample(memory, rng.key(1), 20_000)["action"], minlength=16)
    assert (share[:7] == 0).all() and (share[7:15] > 2000).all()
    keys = rng.split(rng.key(2), 3)
    many = replay.sample(memory, keys, 6)
    assert many.batch_size == (3, 6)
    assert torch.equal(many["action"][1], replay.sample(memory, keys[1], 6)["action"])


def test_tasks_have_memories_of_their_own():
    replay = replay_buffer(5)
    memories = vmap(replay.init)(steps(3, 1))
    assert memories["steps"].batch_size == (3, 5)
    tds, keys = steps(3, 2, 4), rng.split(rng.key(0), 3)
    memories = vmap(replay.add)(memories, tds)
    batches = vmap(lambda memory, key: replay.sample(memory, key, 6))(memories, keys)
    for i in range(3):
        alone = replay.add(replay.init(steps(1)), tds[i])
        assert kept(alone) == kept(memories[i])
        batch = replay.sample(alone, keys[i], 6)
        assert torch.equal(batch["next", "x"], batches["next", "x"][i])


def test_compiled_is_the_same():
    replay = replay_buffer(5)

    def run(memory, td, key):
        memory = replay.add(memory, td, donate=True)
        return memory, replay.sample(memory, key, 4)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    args = replay.init(steps(1)), steps(2, 4), rng.key(0)
    ours = compiled(*args)
    for left, right in zip(ours, run(*args), strict=True):
        assert tree.allclose(left, right)


@pytest.mark.parametrize("donate", [False, True])
def test_what_is_differentiated_goes_through(donate):
    replay = replay_buffer(4)

    def total(scale):
        td = steps(3, start=1)
        td = tree.replace(td, {"observation": scale * td["observation"]})
        memory = replay.add(replay.init(td), td, donate=donate)
        return memory["steps", "observation"].sum()

    assert grad(total)(torch.tensor(1.0, dtype=D)) == 3 * (1 + 2 + 3)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="replay_buffer: capacity is a float, expected an int"):
        replay_buffer(2.0)
    with pytest.raises(ValueError, match="replay_buffer: capacity is 0, expected at least 1"):
        replay_buffer(0)
    replay = replay_buffer(4)
    memory, td = replay.init(steps(1)), steps(2)
    with pytest.raises(ValueError, match="replay_buffer.sample: the memory is empty"):
        replay.sample(memory, rng.key(0), 2)
    with pytest.raises(ValueError, match="replay_buffer.add: .*'action'"):
        replay.add(memory, tree.exclude(td, "action"))
    with pytest.raises(
        TypeError, match="a step's 'action' is torch.int32 of shape .* expected torc"
    ):
        replay.add(memory, tree.replace(td, {"action": td["action"].int()}))
    with pytest.raises(
        ValueError, match=r"shape \(3,\), expected torch.float64 of shape \(2,\) \(f"
    ):
        replay.add(memory, tree.replace(td, {"observation": torch.zeros(2, 3, dtype=D)}))
    with pytest.raises(ValueError, match="add: memory holds steps, expected it as init gives it"):
        replay.add(tree.exclude(memory, "count"), td)
    with pytest.raises(TypeError, match="replay_buffer.init: td is a dict"):
        replay.init({})
