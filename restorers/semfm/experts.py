"""Feed-forward layers of a transformer block: the dense one, and experts of which each token takes its best."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

GateGradient = Literal["scale", "dense"]


class GateUse(NamedTuple):
    """What one gate did with its tokens.

    probabilities: float32 (tokens, K), softmax of the gate, with gradient (paper eq. 6).
    choice: int64 (tokens * top_k,), the experts that took the tokens, token by token.
    """

    probabilities: Tensor
    choice: Tensor


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, over the last axis of (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class ExpertFeedForward(nn.Module):
    """K feed-forward layers of which each token takes the `top_k` that its gate prefers (paper eq. 5 and 6).

    Every token is computed, however uneven the choice: tokens are sorted by expert and each expert runs on its own.
    The value is the mean of the chosen experts weighted by their probabilities, divided by the sum of these: one
    chosen expert counts unscaled, so that a layer of copies gives what its teacher gave.
    The gate's gradient has two settings. `scale`: chosen outputs times alpha_k / stopgrad(sum of the chosen alpha).
    `dense`: sum over all k of (alpha_k - stopgrad(alpha_k)) f_k is added, which is 0 in value; all experts are
    evaluated for it, and no gradient enters them by it. Outside training the two are the same.
    """

    def __init__(
        self, dim: int, hidden: int, experts: int, top_k: int = 1, gate_gradient: GateGradient = "scale"
    ) -> None:
        super().__init__()
        self.experts, self.top_k, self.gate_gradient = experts, top_k, gate_gradient
        self.gate = nn.Linear(dim, experts)
        self.weight1 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.bias1 = nn.Parameter(torch.zeros(experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.bias2 = nn.Parameter(torch.zeros(experts, dim))
        for weight in (*self.weight1, *self.weight2):
            nn.init.xavier_uniform_(weight.data)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, GateUse]:
        """x: (..., dim); returns an array of equal shape, and the use of the gate."""
        tokens = x.reshape(-1, x.shape[-1]).to(_dtype(x))
        logits = self.gate(tokens)
        probabilities = gate_weights(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        if self.top_k == 1:
            alpha, choice = probabilities.max(-1)
            out = self._chosen(tokens, choice)
            if self.gate_gradient == "scale" and alpha.requires_grad:
                out = _Unscaled.apply(out, alpha)
        else:
            alpha, choice = probabilities.topk(self.top_k, -1)
            repeated = tokens.repeat_interleave(self.top_k, 0)
            kept = alpha if self.gate_gradient == "scale" else alpha.detach()
            weights = kept / alpha.detach().sum(-1, keepdim=True)
            outputs = self._chosen(repeated, choice.flatten()).unflatten(0, choice.shape)
            out = mixture(weights.to(outputs.dtype), outputs)
        if self.gate_gradient == "dense" and alpha.requires_grad:
            out = out + self._without_value(tokens, probabilities)
        return out.reshape(x.shape), GateUse(probabilities, choice.flatten())

    def _chosen(self, tokens: Tensor, choice: Tensor) -> Tensor:
        """Outputs (T, dim) of the chosen experts (T,), each run once on all the tokens that chose it."""
        order = choice.argsort()
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts = choice.bincount(minlength=self.experts)
        run = grouped if tokens.is_cuda and tokens.dtype == torch.bfloat16 and _GROUPED else split
        weights = self.weight1, self.bias1, self.weight2, self.bias2
        return _Permute.apply(run(_Permute.apply(tokens, order, place), counts, *weights), place, order)

    def _without_value(self, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Sum over all experts of (alpha_k - stopgrad(alpha_k)) f_k, with a gradient to alpha alone."""
        with torch.no_grad():
            outputs = torch.stack([self.run_one(k, tokens) for k in range(self.experts)], 1)
        return mixture((probabilities - probabilities.detach()).to(outputs.dtype), outputs)

    def run_one(self, k: int, tokens: Tensor) -> Tensor:
        """Expert k alone on all tokens (T, dim)."""
        hidden = functional.gelu(functional.linear(tokens, self.weight1[k], self.bias1[k]))
        return functional.linear(hidden, self.weight2[k], self.bias2[k])


def gate_weights(logits: Tensor, top_k: int | None = None) -> Tensor:
    """Eq. 6: softmax of gate logits (T, K); with `top_k`, the largest are kept as they are and the rest is 0.

    Over few experts a CPU computes it several times faster along the first axis than along the last.
    """
    alpha = functional.softmax(logits.t(), 0).t()
    if top_k is None:
        return alpha
    largest = alpha.topk(top_k, -1).indices
    return torch.zeros_like(alpha).scatter(-1, largest, alpha.gather(-1, largest))


def mixture(weights: Tensor, outputs: Tensor) -> Tensor:
    """Eq. 5: sum over k of weights (T, K) times outputs (T, K, dim), as (T, dim)."""
    return (weights.unsqueeze(1) @ outputs).squeeze(1)


def split(tokens: Tensor, counts: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Outputs (T, dim) for tokens (T, dim) sorted by expert, counts (K,) of them each; one expert after the other."""
    dtype = tokens.dtype
    if torch.is_grad_enabled():
        weights = [weight.to(dtype) for weight in (weight1, bias1, weight2, bias2)]
        return _Split.apply(tokens, counts.tolist(), *weights)
    out = tokens.new_empty(len(tokens), weight2.shape[1])
    parts = zip(tokens.split(counts.tolist()), out.split(counts.tolist()), strict=True)
    for k, (x_k, out_k) in enumerate(parts):
        if len(x_k):
            hidden = torch.addmm(bias1[k].to(dtype), x_k, weight1[k].to(dtype).t())
            torch.ops.aten.gelu.out(hidden, out=hidden)
            torch.addmm(bias2[k].to(dtype), hidden, weight2[k].to(dtype).t(), out=out_k)
    return out


def grouped(tokens: Tensor, counts: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The same as `split` in two grouped matrix products, without waiting for the counts on the host."""
    weight1, bias1, weight2, bias2 = (weight.to(tokens.dtype) for weight in (weight1, bias1, weight2, bias2))
    ends = counts.cumsum(0).to(torch.int32)
    expert = torch.repeat_interleave(counts, output_size=len(tokens))
    hidden = functional.grouped_mm(tokens, weight1.transpose(1, 2), offs=ends) + bias1[expert]
    return functional.grouped_mm(functional.gelu(hidden), weight2.transpose(1, 2), offs=ends) + bias2[expert]


_GROUPED = hasattr(functional, "grouped_mm")


def _dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast multiplies, or the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Split(torch.autograd.Function):
    """Each expert's two layers on its slice; gradients are written into one array, which plain autograd would copy."""

    @staticmethod
    def forward(ctx, x, counts, weight1, bias1, weight2, bias2):  # type: ignore[no-untyped-def]
        before = x.new_empty(len(x), weight1.shape[1])
        after, out = torch.empty_like(before), x.new_empty(len(x), weight2.shape[1])
        parts = (tensor.split(counts) for tensor in (x, before, after, out))
        for k, (x_k, before_k, after_k, out_k) in enumerate(zip(*parts, strict=True)):
            torch.addmm(bias1[k], x_k, weight1[k].t(), out=before_k)
            torch.ops.aten.gelu.out(before_k, out=after_k)
            torch.addmm(bias2[k], after_k, weight2[k].t(), out=out_k)
        ctx.save_for_backward(x, before, after, weight1, weight2)
        ctx.counts = counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, before, after, weight1, weight2 = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_x, inner = torch.empty_like(x), torch.empty_like(before)
        grads = [torch.empty_like(weight1), x.new_empty(weight1.shape[:2])] if wanted[2] else [None, None]
        grads += [torch.empty_like(weight2), x.new_empty(weight2.shape[:2])] if wanted[4] else [None, None]
        parts = (tensor.split(ctx.counts) for tensor in (x, before, after, inner, grad.contiguous(), grad_x))
        for k, (x_k, before_k, after_k, inner_k, grad_k, grad_x_k) in enumerate(zip(*parts, strict=True)):
            torch.mm(grad_k, weight2[k], out=inner_k)
            torch.ops.aten.gelu_backward.grad_input(inner_k, before_k, grad_input=inner_k)
            torch.mm(inner_k, weight1[k], out=grad_x_k)
            for place, left, right in ((0, inner_k, x_k), (2, grad_k, after_k)):
                if grads[place] is not None:
                    torch.mm(left.t(), right, out=grads[place][k])
                    torch.sum(left, 0, out=grads[place + 1][k])
        return grad_x, None, *grads


class _Unscaled(torch.autograd.Function):
    """Rows of x (T, dim) times alpha / stopgrad(alpha): the value is x itself."""

    @staticmethod
    def forward(ctx, x, alpha):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, alpha)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, alpha = ctx.saved_tensors
        return grad, (grad * x).sum(-1, dtype=alpha.dtype) / alpha


class _Permute(torch.autograd.Function):
    """Rows of x (T, dim) in another order; `back` is the inverse of `order`, which makes the backward a gather too."""

    @staticmethod
    def forward(ctx, x, order, back):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None
