"""The recurrent cells, each as a plain loop, a forward kernel and a backward kernel.

Equations, symbols and shapes are those of ``recurrent.py`` and ``unroll.py``. The kernels run on
plain tensors and write in place on buffers that they made; what a loop computes in one line is the
reference for its kernel, and the tests hold the two together.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .unroll import Cell, before, cleared, input_grad, outer, project, steps

_aten = torch.ops.aten
_Needs = tuple[bool, bool]
_Tensors = tuple[Tensor, ...]


def _gru_loop(
    x: Tensor,
    reset: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    *,
    reverse: bool,
) -> _Tensors:
    projected, outputs = project(x, weight_ih, bias_ih), []
    for t in steps(x.shape[1], reverse):
        h = cleared(h, reset, t)
        hidden = torch.baddbmm(bias_hh.unsqueeze(1), h, weight_hh.mT)
        x_r, x_z, x_n = projected[:, t].chunk(3, -1)
        h_r, h_z, h_n = hidden.chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h = torch.lerp(n, h, z)  # (1 - z) n + z h
        outputs.append(h)
    return (torch.stack(outputs[::-1] if reverse else outputs, 1),)


def _gru_forward(
    x: Tensor,
    reset: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    *,
    reverse: bool,
) -> _Tensors:
    """Keeps (r, z, n) as gates, and W_hn h + b_hn as extra."""
    (stack, length, batch, _), size = x.shape, h.shape[-1]
    bias = bias_ih.clone()
    bias[:, : 2 * size] += bias_hh[:, : 2 * size]
    weight_rz, weight_n = weight_hh.mT.split([2 * size, size], -1)
    bias_n = bias_hh[:, None, 2 * size :]
    gates = project(x, weight_ih, bias)
    out, hidden = x.new_empty(2, stack, length, batch, size)
    for t in steps(length, reverse):
        h, h_n = cleared(h, reset, t), hidden[:, t]
        rz, n = gates[:, t].split([2 * size, size], -1)
        rz.baddbmm_(h, weight_rz).sigmoid_()
        torch.baddbmm(bias_n, h, weight_n, out=h_n)
        n.addcmul_(rz[..., :size], h_n).tanh_()
        h = torch.lerp(n, h, rz[..., size:], out=out[:, t])
    return out, gates, hidden


def _gru_backward(
    reverse: bool,
    needs: _Needs,
    grads: _Tensors,
    x: Tensor,
    reset: Tensor | None,
    weights: _Tensors,
    carry: _Tensors,
    out: Tensor,
    gates: Tensor,
    hidden: Tensor,
) -> tuple[Tensor | None, ...]:
    """The letters are those of the loop, with a d in front for the gradient of each.

    dn = (1 - z) dh tanh', dz = (h - n) dh sigmoid', dr = h_n dn sigmoid', dh_n = r dn
    """
    weight_ih, weight_hh, _, _ = weights
    (out_grad,), length, size = grads, x.shape[1], out.shape[-1]
    weight_rz, weight_n = weight_hh.split([2 * size, size], 1)
    previous = before(carry[0], out, reset, reverse)
    d_gates, d_hidden = torch.empty_like(gates), torch.empty_like(hidden)
    dh, buffer = torch.zeros_like(carry[0]), torch.empty_like(carry[0])
    for t in steps(length, not reverse):
        r, z, n = gates[:, t].split(size, -1)
        dr, dz, dn = d_gates[:, t].split(size, -1)
        dh_n = d_hidden[:, t]
        dh += out_grad[:, t]
        torch.sub(previous[:, t], n, out=buffer).mul_(dh)
        _aten.sigmoid_backward.grad_input(buffer, z, grad_input=dz)
        torch.addcmul(dh, dh, z, value=-1.0, out=buffer)
        _aten.tanh_backward.grad_input(buffer, n, grad_input=dn)
        torch.mul(dn, hidden[:, t], out=buffer)
        _aten.sigmoid_backward.grad_input(buffer, r, grad_input=dr)
        torch.mul(dn, r, out=dh_n)
        dh.mul_(z).baddbmm_(d_gates[:, t, :, : 2 * size], weight_rz).baddbmm_(dh_n, weight_n)
        if reset is not None:
            dh.masked_fill_(reset[:, t].unsqueeze(-1), 0.0)
    dx = input_grad(d_gates, weight_ih) if needs[0] else None
    if not needs[1]:
        return dx, None, None, None, None, dh
    rz, n = d_gates[..., : 2 * size], d_hidden
    d_weight_hh = torch.cat((outer(rz, previous), outer(n, previous)), 1)
    d_bias_ih = d_gates.sum((1, 2))
    d_bias_hh = torch.cat((d_bias_ih[:, : 2 * size], n.sum((1, 2))), 1)
    return dx, outer(d_gates, x), d_weight_hh, d_bias_ih, d_bias_hh, dh


def _lstm_loop(
    x: Tensor,
    reset: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    c: Tensor,
    *,
    reverse: bool,
) -> _Tensors:
    projected, outputs = project(x, weight_ih, bias_ih + bias_hh), []
    for t in steps(x.shape[1], reverse):
        h, c = cleared(h, reset, t), cleared(c, reset, t)
        i, f, g, o = torch.baddbmm(projected[:, t], h, weight_hh.mT).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs[::-1] if reverse else outputs, 1), c


def _lstm_forward(
    x: Tensor,
    reset: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    c: Tensor,
    *,
    reverse: bool,
) -> _Tensors:
    """Keeps (i, f, g, o) as gates, and the cells of all steps as extra."""
    (stack, length, batch, _), size = x.shape, h.shape[-1]
    gates, weight = project(x, weight_ih, bias_ih + bias_hh), weight_hh.mT
    out, cells = x.new_empty(2, stack, length, batch, size)
    squashed = torch.empty_like(c)
    for t in steps(length, reverse):
        h, c = cleared(h, reset, t), cleared(c, reset, t)
        i_f, g, o = gates[:, t].baddbmm_(h, weight).split([2 * size, size, size], -1)
        i, f = i_f.sigmoid_().split(size, -1)
        c = torch.mul(f, c, out=cells[:, t]).addcmul_(i, g.tanh_())
        h = torch.mul(o.sigmoid_(), torch.tanh(c, out=squashed), out=out[:, t])
    return out, c.clone(), gates, cells


def _lstm_backward(
    reverse: bool,
    needs: _Needs,
    grads: _Tensors,
    x: Tensor,
    reset: Tensor | None,
    weights: _Tensors,
    carry: _Tensors,
    out: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor | None, ...]:
    """The letters are those of the loop, with a d in front for the gradient of each.

    do = tanh(c) dh sigmoid', dc += o dh tanh',
    di = g dc sigmoid', df = c dc sigmoid' (of the cell before the step), dg = i dc tanh'
    """
    (weight_ih, weight_hh, _, _), length, size = weights, x.shape[1], out.shape[-1]
    out_grad, dc, dh = grads[0], grads[1].clone(), torch.zeros_like(carry[0])
    previous_c = before(carry[1], cells, reset, reverse)
    d_gates, buffer, squashed = torch.empty_like(gates), torch.empty_like(dc), torch.empty_like(dc)
    for t in steps(length, not reverse):
        i, f, g, o = gates[:, t].split(size, -1)
        di, df, dg, do = d_gates[:, t].split(size, -1)
        dh += out_grad[:, t]
        torch.tanh(cells[:, t], out=squashed)
        torch.mul(dh, squashed, out=buffer)
        _aten.sigmoid_backward.grad_input(buffer, o, grad_input=do)
        dc += _aten.tanh_backward.grad_input(dh.mul_(o), squashed, grad_input=buffer)
        torch.mul(dc, g, out=buffer)
        _aten.sigmoid_backward.grad_input(buffer, i, grad_input=di)
        torch.mul(dc, previous_c[:, t], out=buffer)
        _aten.sigmoid_backward.grad_input(buffer, f, grad_input=df)
        torch.mul(dc, i, out=buffer)
        _aten.tanh_backward.grad_input(buffer, g, grad_input=dg)
        dc.mul_(f)
        torch.bmm(d_gates[:, t], weight_hh, out=dh)
        if reset is not None:
            start = reset[:, t].unsqueeze(-1)
            dh.masked_fill_(start, 0.0)
            dc.masked_fill_(start, 0.0)
    dx = input_grad(d_gates, weight_ih) if needs[0] else None
    if not needs[1]:
        return dx, None, None, None, None, dh, dc
    d_bias = d_gates.sum((1, 2))
    d_weight_hh = outer(d_gates, before(carry[0], out, reset, reverse))
    return dx, outer(d_gates, x), d_weight_hh, d_bias, d_bias.clone(), dh, dc


def _rnn(
    function: Callable[[Tensor], Tensor],
    function_: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor, Tensor, Tensor], Any],
) -> Cell:
    """The cell of a function; `slope(dh, h, d)` writes dh times the function's slope into d."""

    def loop(
        x: Tensor,
        reset: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        h: Tensor,
        *,
        reverse: bool,
    ) -> _Tensors:
        projected, outputs = project(x, weight_ih, bias_ih + bias_hh), []
        for t in steps(x.shape[1], reverse):
            h = cleared(h, reset, t)
            h = function(torch.baddbmm(projected[:, t], h, weight_hh.mT))
            outputs.append(h)
        return (torch.stack(outputs[::-1] if reverse else outputs, 1),)

    def forward(
        x: Tensor,
        reset: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        h: Tensor,
        *,
        reverse: bool,
    ) -> _Tensors:
        """Keeps nothing: the output says it all."""
        out, weight = project(x, weight_ih, bias_ih + bias_hh), weight_hh.mT
        for t in steps(x.shape[1], reverse):
            h = function_(out[:, t].baddbmm_(cleared(h, reset, t), weight))
        empty = (*x.shape[:3], 0)
        return out, x.new_empty(empty), x.new_empty(empty)

    def backward(
        reverse: bool,
        needs: _Needs,
        grads: _Tensors,
        x: Tensor,
        reset: Tensor | None,
        weights: _Tensors,
        carry: _Tensors,
        out: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor | None, ...]:
        (weight_ih, weight_hh), (out_grad,), length = weights[:2], grads, x.shape[1]
        d_gates, dh = torch.empty_like(out), torch.zeros_like(carry[0])
        for t in steps(length, not reverse):
            slope(dh.add_(out_grad[:, t]), out[:, t], d_gates[:, t])
            torch.bmm(d_gates[:, t], weight_hh, out=dh)
            if reset is not None:
                dh.masked_fill_(reset[:, t].unsqueeze(-1), 0.0)
        dx = input_grad(d_gates, weight_ih) if needs[0] else None
        if not needs[1]:
            return dx, None, None, None, None, dh
        d_bias = d_gates.sum((1, 2))
        d_weight_hh = outer(d_gates, before(carry[0], out, reset, reverse))
        return dx, outer(d_gates, x), d_weight_hh, d_bias, d_bias.clone(), dh

    return Cell(1, 1, loop, forward, backward)


def _tanh_slope(dh: Tensor, h: Tensor, d: Tensor) -> None:
    _aten.tanh_backward.grad_input(dh, h, grad_input=d)


def _relu_slope(dh: Tensor, h: Tensor, d: Tensor) -> None:
    _aten.threshold_backward.grad_input(dh, h, 0.0, grad_input=d)


RNN = {
    "tanh": _rnn(torch.tanh, torch.tanh_, _tanh_slope),
    "relu": _rnn(torch.relu, torch.relu_, _relu_slope),
}
GRU = Cell(3, 1, _gru_loop, _gru_forward, _gru_backward)
LSTM = Cell(4, 2, _lstm_loop, _lstm_forward, _lstm_backward)
