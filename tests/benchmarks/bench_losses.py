"""Returns and losses against TorchRL's, forward and backward from given tensors, no networks.

A shape is environments x steps. Both sides get the same float32 tensors, ``[B, T]`` for ours and
``[B, T, 1]`` for TorchRL, of which some require grad, among them gamma, and give the same
gradients: a peer whose gradients are not ours is no peer, and of several the fastest is taken.
Beside them stands rlax, jitted on the CPU in a process of its own, at the same shapes.

    python tests/benchmarks/bench_losses.py [--only NAME] [--rlax PYTHON]
    python tests/benchmarks/bench_losses.py --crossover

The second form prints a table: how ``reverse_linear`` fares with either algorithm by shape.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import seconds
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor
from torch.distributions import Categorical
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.objectives.value import functional as torchrl

import losses

SHAPES = ((256, 128), (4, 32))
GAMMA, LMBDA = 0.99, 0.95
RLAX = Path(__file__).with_name("rlax_losses.py")
JAX_PYTHON = Path(__file__).parents[2] / ".venv-jax/bin/python"

Run = Callable[[], Sequence[Tensor]]


@dataclass
class Comparison:
    """Two ways to the same gradients; each ``run`` is one forward and backward."""

    name: str
    ours: Run
    peers: dict[str, Run]
    target: float

    def line(self) -> dict[str, Any]:
        """What is printed."""
        wanted = self.ours()
        right = {name: run for name, run in self.peers.items() if agree(run(), wanted)}
        if not right:
            raise AssertionError(f"{self.name}: no peer gives our gradients")
        ours, *others = seconds([self.ours, *right.values()], 25, 0.01)
        peer, peer_name = min(zip(others, right, strict=True))
        return {
            "name": self.name,
            "ours": ours,
            "peer": peer,
            "peer_name": peer_name,
            "ratio": ours / peer,
            "target": self.target,
        }


def agree(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether two lists of gradients are the same, up to float32's rounding over a trajectory."""
    return all(
        torch.allclose(x, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))
        for x, y in zip(found, wanted, strict=True)
    )


class Steps:
    """Random steps ``[B, T]``, a number of which end an episode."""

    def __init__(self, envs: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = (envs, steps)

        def normal(*more: int) -> Tensor:
            return torch.randn(envs, steps, *more, generator=generator)

        def flag(p: float) -> Tensor:
            return torch.rand(envs, steps, generator=generator) < p

        self.normal = normal
        self.reward, self.value, self.next_value = normal(), normal(), normal()
        self.log_mu, self.log_pi = normal() - 1, normal() - 1
        self.done = flag(0.05)
        self.terminated = self.done & flag(0.5)
        self.weight, self.other_weight = normal(), normal()  # of the results, for the backward
        self.gamma = torch.tensor(GAMMA, requires_grad=True)


def first(*tensors: Tensor) -> list[Tensor]:
    """Time first, as a per-step function wants it; a view of ``[B, T]``."""
    return [x.movedim(1, 0) for x in tensors]


def last(*tensors: Tensor) -> list[Tensor]:
    """With the trailing axis that TorchRL wants."""
    return [x.unsqueeze(-1) for x in tensors]


# ---- the comparisons: each function yields one for each shape


def bench_lambda_returns() -> Iterator[Comparison]:
    """``lambda_returns`` against TorchRL's TD(lambda): the loop, and the vectorized one."""
    for shape in SHAPES:
        s = Steps(*shape)
        wanted = [s.reward.requires_grad_(), s.next_value.requires_grad_(), s.gamma]

        def ours(s: Steps = s, wanted: list[Tensor] = wanted) -> Sequence[Tensor]:
            args = first(s.reward, s.next_value, s.done, s.terminated)
            out = losses.lambda_returns(*args, s.gamma, LMBDA)
            return torch.autograd.grad(out, wanted, s.weight.T)

        def peer(
            function: Callable[..., Tensor],
            expand: bool,
            s: Steps = s,
            wanted: list[Tensor] = wanted,
        ) -> Run:
            def run() -> Sequence[Tensor]:
                gamma = s.gamma.expand(*s.shape, 1) if expand else s.gamma
                args = last(s.next_value, s.reward, s.done, s.terminated)
                out = function(gamma, LMBDA, *args)
                return torch.autograd.grad(out, wanted, s.weight.unsqueeze(-1))

            return run

        vectorized = torchrl.vec_td_lambda_return_estimate
        peers = {
            "torchrl td_lambda_return_estimate": peer(torchrl.td_lambda_return_estimate, False),
            "torchrl vec_td_lambda_return_estimate": peer(vectorized, False),
            "torchrl vec_td_lambda_return_estimate, gamma expanded": peer(vectorized, True),
        }
        yield Comparison(titled("lambda_returns", shape), ours, peers, 0.8)


def bench_vtrace() -> Iterator[Comparison]:
    """``vtrace`` against TorchRL's V-trace, which has no lambda and one clip for two weights."""
    for shape in SHAPES:
        s = Steps(*shape)
        wanted = [s.value, s.next_value, s.log_pi]
        wanted = [*(x.requires_grad_() for x in wanted), s.gamma]

        def ours(s: Steps = s, wanted: list[Tensor] = wanted) -> Sequence[Tensor]:
            log_rho = s.log_pi - s.log_mu
            args = first(s.reward, s.value, s.next_value, s.done, s.terminated, log_rho)
            out = losses.vtrace(*args, s.gamma)
            weights = [s.weight.T, s.other_weight.T]
            return torch.autograd.grad([out.advantage, out.value_target], wanted, weights)

        def peer(s: Steps = s, wanted: list[Tensor] = wanted) -> Sequence[Tensor]:
            policies, values = last(s.log_pi, s.log_mu), last(s.value, s.next_value, s.reward)
            out = torchrl.vtrace_advantage_estimate(
                s.gamma, *policies, *values, *last(s.done, s.terminated)
            )
            return torch.autograd.grad(out, wanted, last(s.weight, s.other_weight))

        peers = {"torchrl vtrace_advantage_estimate": peer}
        yield Comparison(titled("vtrace", shape), ours, peers, 0.8)


def bench_retrace() -> Iterator[Comparison]:
    """``retrace`` of 6 actions against a plain loop: TorchRL has no Retrace."""
    actions = 6
    for shape in SHAPES:
        s = Steps(*shape)
        q = s.normal(actions).requires_grad_()  # of the states that follow
        probs = s.normal(actions).softmax(-1).requires_grad_()
        action = s.normal(actions).argmax(-1)
        wanted = [q, probs, s.gamma]

        def ours(
            s: Steps = s,
            inputs: tuple[Tensor, ...] = (q, probs, action),
            wanted: list[Tensor] = wanted,
        ) -> Sequence[Tensor]:
            args = first(s.reward, *inputs, s.log_mu, s.done, s.terminated)
            out = losses.retrace(*args, s.gamma, LMBDA)
            return torch.autograd.grad(out, wanted, s.weight.T)

        def peer(
            s: Steps = s,
            inputs: tuple[Tensor, ...] = (q, probs, action),
            wanted: list[Tensor] = wanted,
        ) -> Sequence[Tensor]:
            out = retrace_by_loop(s, *inputs)
            return torch.autograd.grad(out, wanted, s.weight)

        yield Comparison(titled("retrace", shape), ours, {"plain torch loop": peer}, 0.8)


def retrace_by_loop(s: Steps, q: Tensor, probs: Tensor, action: Tensor) -> Tensor:
    """Retrace as rlax writes it, step after step, on ``[B, T]``, as TorchRL's loops are written."""
    discount = s.gamma * ~s.terminated
    expected = (probs * q).sum(-1)
    later = action[:, 1:].unsqueeze(-1)
    chosen = q[:, :-1].gather(-1, later).squeeze(-1)
    ratio = probs[:, :-1].gather(-1, later).squeeze(-1) / s.log_mu[:, 1:].exp()
    c = LMBDA * ratio.clamp(max=1.0) * ~s.done[:, :-1]
    x = s.reward[:, -1] + discount[:, -1] * expected[:, -1]
    out = [x]
    for t in reversed(range(s.shape[1] - 1)):
        after = expected[:, t] + c[:, t] * (x - chosen[:, t])
        x = s.reward[:, t] + discount[:, t] * after
        out.append(x)
    return torch.stack(out[::-1], 1)


def bench_ppo() -> Iterator[Comparison]:
    """GAE and the clipped loss of 6 actions, against TorchRL's with networks that pass tensors on.

    TorchRL's GAE takes the values from the td, or from a value network; the first does less.
    """
    for shape, target in zip(SHAPES, (0.6, 0.5), strict=True):
        s = Steps(*shape)
        logits = s.normal(6).requires_grad_()
        action = s.normal(6).argmax(-1)
        log_mu = (logits.detach() + 0.1 * s.normal(6)).log_softmax(-1)
        log_mu = log_mu.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        wanted = [logits, s.value.requires_grad_()]
        flags = {"done": s.done, "terminated": s.terminated}
        after = {"reward": s.reward, "state_value": s.next_value, **flags}
        drawn = {"action": action, "action_log_prob": log_mu}
        given = {"logits": logits, "state_value": s.value, **drawn}
        td = TensorDict({**given, "next": TensorDict(after, shape)}, shape)

        def ours(td: TensorDict = td, wanted: list[Tensor] = wanted) -> Sequence[Tensor]:
            with torch.no_grad():
                batch = losses.add_advantage(td, GAMMA, LMBDA)
            return torch.autograd.grad(losses.total(losses.ppo_clip_loss(batch)), wanted)

        after = {k: x.unsqueeze(-1) for k, x in after.items()}
        after["value"] = after["state_value"]
        value = s.value.unsqueeze(-1)
        given = {"raw": logits, "value": value, "state_value": value, **drawn}
        peer_td = TensorDict({**given, "next": TensorDict(after, shape)}, shape)
        peers = {
            f"torchrl GAE{name}, ClipPPOLoss": torchrl_ppo(peer_td, wanted, network)
            for name, network in {"": False, " with its network": True}.items()
        }
        yield Comparison(titled("ppo_clip", shape), ours, peers, target)


def torchrl_ppo(td: TensorDict, wanted: list[Tensor], network: bool) -> Run:
    """TorchRL's GAE and loss over networks that pass on what they are given."""
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(lambda x: x, ["raw"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"], ["action"], distribution_class=Categorical, return_log_prob=True
        ),
    )
    critic = TensorDictModule(lambda x: x, ["value"], ["state_value"])
    gae = GAE(gamma=GAMMA, lmbda=LMBDA, value_network=critic if network else None, vectorized=True)
    loss = ClipPPOLoss(actor, critic, critic_coeff=0.5, loss_critic_type="l2")

    def run() -> Sequence[Tensor]:
        out = loss(gae(td))
        objective = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        return torch.autograd.grad(objective, wanted)

    return run


BENCHES = [bench_lambda_returns, bench_vtrace, bench_retrace, bench_ppo]


def titled(name: str, shape: tuple[int, int]) -> str:
    """The comparison's name: what, and the shape."""
    return f"{name} {shape[0]}x{shape[1]}"


# ---- rlax, and the crossover


def rlax_seconds(python: Path) -> dict[str, float]:
    """What the script beside this one measures, by the names of the comparisons; or nothing."""
    if not python.exists():
        print(f"rlax is left out: no {python}", file=sys.stderr)
        return {}
    shapes = [f"{envs}x{steps}" for envs, steps in SHAPES]
    done = subprocess.run([python, RLAX, *shapes], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def crossover() -> None:
    """A table of microseconds, forward and backward, with each of the algorithms."""
    methods = ("loop", "halve", "solve")
    print(f"{'steps':>6} {'width':>7}" + "".join(f"{m:>9}" for m in methods) + "   auto takes")
    for steps in (4, 8, 12, 16, 24, 32, 64, 128, 256, 512):
        for width in (1, 4, 16, 128, 512, 2048, 8192):
            a, b = (torch.rand(steps, width, requires_grad=True) for _ in range(2))
            weight = torch.randn(steps, width)

            def run(method: str, a: Tensor = a, b: Tensor = b, w: Tensor = weight) -> Run:
                return lambda: torch.autograd.grad(
                    losses.reverse_linear(a, b, 0.0, method), [a, b], w
                )

            timed = methods if steps**2 * width <= 2**22 else methods[:2]  # its system has T^2 N
            *each, auto = seconds([run(m) for m in (*timed, "auto")])
            nearer = min(zip(each, timed, strict=True), key=lambda pair: abs(pair[0] - auto))[1]
            note = "" if auto < 1.15 * min(each) else "  (slower than it could be)"
            numbers = "".join(f"{x * 1e6:>9.0f}" for x in each) + " " * 9 * (3 - len(each))
            print(f"{steps:>6} {width:>7}{numbers}   {nearer}{note}", flush=True)


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    parser = argparse.ArgumentParser(description="Losses against TorchRL's.")
    parser.add_argument("--only", default="", help="run comparisons whose name holds this")
    parser.add_argument("--rlax", type=Path, default=JAX_PYTHON, help="a python that has rlax")
    parser.add_argument("--crossover", action="store_true")
    options = parser.parse_args()
    if options.crossover:
        crossover()
        return 0
    beside, slow = rlax_seconds(options.rlax), False
    for comparison in (c for bench in BENCHES for c in bench() if options.only in c.name):
        line = comparison.line()
        if comparison.name in beside:
            line["rlax"] = beside[comparison.name]
        print(json.dumps(line), flush=True)
        slow = slow or line["ratio"] > line["target"]
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
