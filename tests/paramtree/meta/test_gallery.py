"""Published toy results of learning to learn, and the exactness of each one's gradient."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import losses
from paramtree import check_grads, grad, meta, nn, rng, tree, vmap
from tests.paramtree.meta import gallery
from tests.paramtree.meta.ways import assert_same

D = torch.float64


def assert_exact(fn, at):
    """A mode's value and gradient at a point, against autodiff and central differences."""
    check_grads(lambda at: fn(at)[0], at, max_entries=3)
    value, grads = fn(at)
    assert_same((value, grads), (fn(at)[0], grad(lambda at: fn(at)[0])(at)))
    assert max(float(x.abs().max()) for x in tree.leaves(grads)) > 1e-6


def double(trees):
    return tree.map(lambda x: x.double(), trees)


# --------------------------------------------------------------------------------------------- MAML


@pytest.mark.parametrize(
    "mode",
    [meta.unrolled, meta.checkpointed, partial(meta.truncated, window=3), meta.forward_mode],
    ids=["unrolled", "checkpointed", "truncated", "forward_mode"],
)
def test_maml_gradient_is_exact_in_every_exact_mode(mode, monkeypatch):
    monkeypatch.setattr(gallery, "wave_net", nn.mlp(1, 6, 1, activation=torch.tanh))
    task = gallery.waves(rng.key(0), 1, dtype=D)[0]
    params = double(gallery.wave_net.init(rng.key(1))[0])
    assert_exact(partial(gallery.maml(3, mode), task), params)


def test_first_order_maml_is_the_gradient_after_adaptation():
    task = gallery.waves(rng.key(0), 1)[0]
    start = gallery.wave_net.init(rng.key(1))[0]
    end = gallery.adapt(task, gallery.adapt(task, start, 0), 1)
    _, ours = gallery.maml(2, order=1)(task, start)
    assert_same(ours, grad(lambda p: gallery.adapted_loss(task, p))(end))


def test_maml_learns_a_wave_in_one_step():
    """Finn et al. (2017), section 5.1: pretraining on all tasks doesn't help; MAML does."""
    tasks = gallery.waves(rng.key(99), 200)

    def after_training(gradient):
        params = gallery.meta_train(gradient, rng.key(1))
        return vmap(gallery.learning_curve, (0, None))(tasks, params).mean(0)

    second, first = (after_training(gallery.maml(order=order)) for order in (2, 1))
    pretrained = after_training(gallery.pretraining)
    assert second[0] > 2.5 and pretrained[0] > 2.5  # no one knows the wave without a step
    assert second[1] < second[0] / 3 and second[1] < pretrained[1] / 2
    assert first[1] < first[0] / 2 and first[1] < pretrained[1] * 0.75
    for curve in (second, first):  # trained for one step, it goes on to improve
        assert (curve[:6].diff() < 0).all() and curve[10] < curve[1] * 0.75
    assert second[10] < pretrained[10] / 2


# ------------------------------------------------------------------------------------ implicit MAML

STRENGTH = 0.3


def linear_task(seed=0):
    task = gallery.waves(rng.key(seed), 1, dtype=D)[0]
    return task, tree.new({"weight": rng.normal(rng.key(5), (12,), dtype=D)})


def solved(task, initial):
    """The inner problem's solution and its derivative in the initial weights, in closed form."""
    x, y = gallery.features(task["train", "x"]), task["train", "y"].squeeze(-1)
    inverse = torch.linalg.inv(x.T @ x / len(y) + STRENGTH * torch.eye(12, dtype=D))
    params = inverse @ (x.T @ y / len(y) + STRENGTH * initial["weight"])
    return tree.new({"weight": params}), STRENGTH * inverse


def exact(task, initial):
    params, slope = solved(task, initial)
    return slope @ grad(gallery.linear_loss)(params, task["test"])["weight"]


def proximal(steps, mode):
    return gallery.imaml(gallery.linear_loss, steps, 0.2, STRENGTH, mode)


def test_implicit_maml_is_exact_where_the_inner_problem_is_solved():
    task, initial = linear_task()
    implicit, unrolled = (proximal(400, mode) for mode in (meta.implicit, meta.unrolled))
    assert_exact(partial(implicit, task), initial)
    assert_same(implicit(task, initial), unrolled(task, initial), rtol=1e-8, atol=1e-10)
    assert_close(implicit(task, initial)[1]["weight"], exact(task, initial), rtol=1e-8, atol=1e-10)


def test_implicit_maml_is_nearer_to_the_exact_gradient_than_maml():
    """Rajeswaran et al. (2019): both get there, iMAML with fewer inner steps.

    Not so from the start: with 2 and with 4 steps, far from a solution, MAML's is the nearer one.
    """

    def error(mode, steps):
        tasks = [linear_task(seed) for seed in range(5)]
        rows = [(proximal(steps, mode)(*task)[1]["weight"], exact(*task)) for task in tasks]
        return torch.stack([(ours - wanted).norm() / wanted.norm() for ours, wanted in rows]).mean()

    implicit = [error(meta.implicit, steps) for steps in (8, 16, 32, 64)]
    unrolled = [error(meta.unrolled, steps) for steps in (8, 16, 32, 64)]
    assert all(ours < theirs for ours, theirs in zip(implicit, unrolled, strict=True))
    assert implicit == sorted(implicit, reverse=True) and unrolled[-1] < 0.01
    few = partial(meta.implicit, solve=partial(meta.conjugate_gradient, maxiter=2))
    more = partial(meta.implicit, solve=partial(meta.conjugate_gradient, maxiter=6))
    assert error(more, 400) < error(few, 400) / 10  # as do iterations of the solver


def test_implicit_maml_learns_where_to_begin():
    tasks = gallery.waves(rng.key(99), 200)
    fit = proximal(20, partial(meta.implicit, solve=partial(meta.conjugate_gradient, maxiter=5)))
    start = tree.new({"weight": torch.zeros(12)})
    learned = gallery.meta_train(fit, rng.key(1), start, updates=100, lr=0.05)
    before, after = (vmap(fit, (0, None))(tasks, params)[0].mean() for params in (start, learned))
    assert after < 0.8 * before


# --------------------------------------------------------------------------------------- LOLA-DiCE


def tables():
    return rng.normal(rng.key(3), (2, 5), dtype=D)


@pytest.mark.parametrize("look_ahead", [1, 2, 3])
def test_lola_gradient_of_exact_values(look_ahead):
    mine, theirs = tables()
    for mode in (meta.unrolled, meta.checkpointed, meta.forward_mode):
        lola = gallery.lola(look_ahead, gallery.exact_cost, mode=mode)

        def fn(mine, lola=lola):
            (value, _), slope = lola(mine, theirs, rng.key(0))
            return value, slope

        assert_exact(fn, mine)


def test_dice_estimates_exact_values_and_their_mixed_derivatives():
    mine, theirs = tables()

    def mixed(cost):
        def slope(mine, theirs):
            return grad(lambda theirs: cost(theirs, mine)[0])(theirs)

        return torch.func.jacrev(slope)(mine, theirs)

    def sampled(mine, theirs):
        td = gallery.play(mine, theirs, rng.key(7), games=8000)
        loss = losses.dice_loss(td, gallery.PLAYERS, gamma=gallery.DISCOUNT)
        return losses.total(loss) * td.batch_size[-1], None

    centered = sampled(mine, theirs)[0] - gallery.PAYOFF.mean() / (1 - gallery.DISCOUNT)
    assert_close(centered, gallery.exact_cost(mine, theirs)[0], rtol=0.02, atol=0)
    costs = (sampled, gallery.exact_cost)
    ours, wanted = (grad(lambda mine, f=f: f(mine, theirs)[0])(mine) for f in costs)
    assert_close(ours, wanted, rtol=0, atol=0.1 * float(wanted.abs().max()))
    ours, wanted = (mixed(f) for f in costs)
    assert_close(ours, wanted, rtol=0, atol=0.15 * float(wanted.abs().max()))


def test_naive_learners_defect_and_exact_lola_learners_cooperate():
    """Foerster et al. (2018), LOLA: the mean reward goes to -2 and to -1."""
    naive = gallery.learn_together(gallery.naive(gallery.exact_cost), rng.key(0))
    assert_close(naive[-1], torch.tensor([-2.0, -2.0]), rtol=0, atol=0.02)
    for look_ahead in (1, 2, 3):
        lola = gallery.lola(look_ahead, gallery.exact_cost)
        rewards = gallery.learn_together(lola, rng.key(0))
        assert_close(rewards[-1], torch.tensor([-1.0, -1.0]), rtol=0, atol=0.03)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_lola_dice_learners_cooperate(seed):
    """Foerster et al. (2018), DiCE: the same, from games that they play."""
    rewards = gallery.learn_together(gallery.lola(1), rng.key(seed))
    assert rewards[0].mean() < -1.4 and rewards[-10:].mean() > -1.1


def test_naive_dice_learners_defect():
    rewards = gallery.learn_together(gallery.naive(), rng.key(0), updates=50)
    assert_close(rewards[-1], torch.tensor([-2.0, -2.0]), rtol=0, atol=0.05)


# ---------------------------------------------------------------------------- learning to reweight


def test_gradient_in_the_examples_weights():
    batch, clean = (double(gallery.moons(rng.key(i), (6, 4))) for i in range(2))
    params = double(gallery.moon_net.init(rng.key(2))[0])
    start = torch.zeros(10, dtype=D)
    assert_exact(lambda weight: gallery.reweighting(batch, clean)(weight, params), start)
    _, slope = gallery.reweighting(batch, clean)(start, params)
    of_clean = grad(lambda p: gallery.cross_entropy(p, clean).mean())(params)
    by_hand = [
        -0.1 * tree.vdot(of_clean, grad(lambda p, i=i: gallery.cross_entropy(p, batch)[i])(params))
        for i in range(10)
    ]
    assert_close(slope, torch.stack(by_hand))  # how alike two gradients are


@pytest.mark.parametrize("trouble", ["few", "mislabeled"])
def test_reweighted_examples_beat_even_ones(trouble):
    """Ren et al. (2018), section 4: classes 99 to 1, and 70% of one mislabeled."""

    def accuracies(key):
        keys = rng.split(key, 5)
        data = gallery.moons(keys[0], (4950, 50) if trouble == "few" else (2500, 2500))
        if trouble == "mislabeled":
            data = gallery.mislabeled(keys[4], data, 0.7)
        clean, test = gallery.moons(keys[1], (5, 5)), gallery.moons(keys[2], (1000, 1000))
        fits = (gallery.fit(keys[3], *sets) for sets in ((data,), (data, clean), (clean,)))
        return torch.stack([gallery.accuracy(params, test) for params in fits])

    plain, reweighted, clean_alone = vmap(accuracies)(rng.split(rng.key(0), 8)).mean(0)
    assert reweighted > plain + 0.1 and reweighted > 0.86
    assert reweighted > clean_alone + 0.01
