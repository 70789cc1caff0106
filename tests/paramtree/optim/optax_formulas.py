"""Optimizers that torch doesn't have, one step of one leaf each, in NumPy: what they're held to.

A rule is ``(t, p, g, memory, **hyper) -> p``: the step's number from 1, parameters, gradient, and a
dictionary that is the leaf's own; it gives the parameters after the step.
"""

import numpy as np


def moments(m, t, g, b1, b2, start=0.0):
    m["mu"] = b1 * m.get("mu", start) + (1 - b1) * g
    return m["mu"] / (1 - b1**t), 1 - b2**t


def lion(t, p, g, m, lr, b1=0.9, b2=0.99, weight_decay=0.0):
    mu = m.get("mu", 0.0)
    u = np.sign(b1 * mu + (1 - b1) * g)
    m["mu"] = b2 * mu + (1 - b2) * g
    return p - lr * (u + weight_decay * p)


def adabelief(t, p, g, m, lr, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    hat, fix = moments(m, t, g, b1, b2)
    m["s"] = b2 * m.get("s", 0.0) + (1 - b2) * (g - m["mu"]) ** 2 + eps_root
    return p - lr * hat / (np.sqrt(m["s"] / fix) + eps)


def belief_ahead(t, p, g, m, lr, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    _, fix = moments(m, t, g, b1, b2)
    m["s"] = b2 * m.get("s", 0.0) + (1 - b2) * (g - m["mu"]) ** 2 + eps_root
    hat = b1 * m["mu"] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return p - lr * hat / (np.sqrt(m["s"] / fix) + eps)


def yogi(t, p, g, m, lr, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial=1e-6):
    hat, fix = moments(m, t, g, b1, b2, initial)
    nu = m.get("nu", initial)
    m["nu"] = nu - (1 - b2) * np.sign(nu - g**2) * g**2
    return p - lr * hat / (np.sqrt(m["nu"] / fix + eps_root) + eps)


def novograd(t, p, g, m, lr, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    size = (g**2).sum()
    m["nu"] = size if t == 1 else b2 * m["nu"] + (1 - b2) * size
    u = g / (np.sqrt(m["nu"] + eps_root) + eps) + weight_decay * p
    m["mu"] = u if t == 1 else b1 * m["mu"] + u
    return p - lr * m["mu"]


def trusted(u, p, least=0.0, coefficient=1.0, eps=0.0):
    ours, theirs = max(np.sqrt((u**2).sum()), least), max(np.sqrt((p**2).sum()), least)
    return u if ours == 0 or theirs == 0 else u * coefficient * theirs / (ours + eps)


def lamb(t, p, g, m, lr, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    hat, fix = moments(m, t, g, b1, b2)
    m["nu"] = b2 * m.get("nu", 0.0) + (1 - b2) * g**2
    u = hat / (np.sqrt(m["nu"] / fix + eps_root) + eps) + weight_decay * p
    return p - lr * trusted(u, p)


def lars(
    t,
    p,
    g,
    m,
    lr,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
):
    u = -lr * trusted(g + weight_decay * p, p, 0.0, trust_coefficient, eps)
    m["t"] = u + momentum * m.get("t", 0.0)
    return p + (u + momentum * m["t"] if nesterov else m["t"])


def fromage(t, p, g, m, lr, min_norm=1e-6):
    return (p - lr * trusted(g, p, min_norm)) / np.sqrt(1 + lr**2)


def optimistic(t, p, g, m, lr, alpha=1.0, beta=1.0):
    before = m.get("g", g)
    m["g"] = g
    return p - lr * (alpha * g + beta * (g - before))


def adam(t, g, m, b1, b2, eps, eps_root, nesterov):
    hat, fix = moments(m, t, g, b1, b2)
    if nesterov:
        hat = b1 * m["mu"] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    m["nu"] = b2 * m.get("nu", 0.0) + (1 - b2) * g**2
    return hat / (np.sqrt(m["nu"] / fix + eps_root) + eps)


def optimistic_adam(
    t, p, g, m, lr, optimism=None, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=True
):
    u = adam(t, g, m, b1, b2, eps, eps_root, nesterov)
    before = m.get("u", u)
    m["u"] = u
    return p - lr * u - (lr if optimism is None else optimism) * (u - before)


def optimistic_adam_v2(
    t, p, g, m, lr, alpha=1.0, beta=1.0, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=True
):
    u = adam(t, g, m, b1, b2, eps, eps_root, nesterov)
    before = m.get("u", u)
    m["u"] = u
    return p - lr * (alpha * u + beta * (u - before))


def adafactor(
    t, p, g, m, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False
):
    g, fresh = (-g if maximize else g), t**beta2_decay
    least = np.finfo(np.float64).eps if eps[0] is None else eps[0]
    alpha = max(eps[1], np.sqrt((p**2).mean())) * min(lr, t**-0.5)
    new = lambda name, x: m.__setitem__(name, (1 - fresh) * m.get(name, 0.0) + fresh * x)  # noqa: E731
    if g.ndim > 1:
        new("row", (g**2).mean(-1, keepdims=True))
        new("column", (g**2).mean(-2, keepdims=True))
        v = m["row"] * m["column"] / np.maximum(m["row"].mean(-2, keepdims=True), least)
    else:
        new("v", g**2)
        v = m["v"]
    u = g / np.maximum(np.sqrt(v), least)
    u = u / max(1.0, np.sqrt((u**2).mean()) / d)
    return p - lr * weight_decay * p - alpha * u


def muon(t, p, g, m, lr, weight_decay=0.1, momentum=0.95, nesterov=True, **options):
    m["m"] = momentum * m.get("m", 0.0) + (1 - momentum) * g
    x = momentum * m["m"] + (1 - momentum) * g if nesterov else m["m"]
    x = x / max(np.sqrt((x**2).sum()), options.get("eps", 1e-7))
    a, b, c = options.get("ns_coefficients", (3.4445, -4.7750, 2.0315))
    for _ in range(options.get("ns_steps", 5)):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    rows, columns = p.shape
    size = np.sqrt(max(1.0, rows / columns))
    if options.get("adjust_lr_fn") == "match_rms_adamw":
        size = 0.2 * np.sqrt(max(rows, columns))
    return p - lr * weight_decay * p - lr * size * x


def factored_rms(t, p, g, m, decay_rate=0.8, step_offset=0, least=128, epsilon=1e-30, of=True):
    fresh, s = (t - step_offset) ** -decay_rate, g**2 + epsilon
    new = lambda name, x: m.__setitem__(name, (1 - fresh) * m.get(name, 0.0) + fresh * x)  # noqa: E731
    order = np.argsort(g.shape, kind="stable")
    if of and g.ndim > 1 and g.shape[order[-2]] >= least:
        second, first = order[-2:]
        new("row", s.mean(first, keepdims=True))
        new("column", s.mean(second, keepdims=True))
        v = m["row"] * m["column"] / m["row"].mean(second, keepdims=True)
    else:
        new("v", s)
        v = m["v"]
    return p - g / np.sqrt(v)


def clipped_by_unit(t, p, g, m, clipping, eps=1e-3, axis=None):
    if axis is None:
        units = sum(size != 1 for size in g.shape) > 1
        axis = 0 if units else tuple(range(g.ndim))
    norm = lambda x: np.sqrt((x**2).sum(axis, keepdims=True))  # noqa: E731
    bound = clipping * np.maximum(norm(p), eps)
    return p - np.where(norm(g) < bound, g, g * bound / np.maximum(norm(g), 1e-6))


def centralized(t, p, g, m):
    return p - (g - g.mean(tuple(range(1, g.ndim)), keepdims=True) if g.ndim > 1 else g)


def clipped_by_rms(t, p, g, m, threshold):
    return p - g / max(1.0, np.sqrt((g**2).mean()) / threshold)


def clipped(t, p, g, m, max_delta):
    return p - np.clip(g, -max_delta, max_delta)


def signs(t, p, g, m):
    return p - np.sign(g)
