"""Experts against the dense sum written out, and what each of the two gate gradients can and cannot tell."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from restorers.semfm import experts
from restorers.semfm.experts import ExpertFeedForward, FeedForward

DIM, HIDDEN, K = 12, 20, 5


def layer(gate_gradient: experts.GateGradient = "scale", top_k: int = 1, seed: int = 0) -> ExpertFeedForward:
    """A layer in double precision whose experts differ and whose gate has preferences."""
    torch.manual_seed(seed)
    made = ExpertFeedForward(DIM, HIDDEN, K, top_k, gate_gradient).double()
    torch.nn.init.normal_(made.gate.weight)
    torch.nn.init.normal_(made.bias1)
    torch.nn.init.normal_(made.bias2)
    return made


def copies(gate_gradient: experts.GateGradient) -> ExpertFeedForward:
    """A layer whose experts are all the same."""
    made = layer(gate_gradient)
    for value in (made.weight1, made.bias1, made.weight2, made.bias2):
        value.data[:] = value.data[:1].clone()
    return made


def outputs(made: ExpertFeedForward, x: Tensor) -> Tensor:
    """Every expert on every token, (T, K, DIM)."""
    return torch.stack([made.run_one(k, x) for k in range(K)], 1)


def tokens(count: int = 40) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def gate_gradient(made: ExpertFeedForward, x: Tensor, target: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((made(x)[0] - target).abs().mean(), made.gate.weight)
    return gradient


@pytest.mark.parametrize("setting", ["scale", "dense"])
@pytest.mark.parametrize("top_k", [1, 2, K])
def test_dispatch_equals_the_dense_sum(setting: experts.GateGradient, top_k: int) -> None:
    made, x = layer(setting, top_k), tokens()
    kept = experts.gate_weights(made.gate(x), top_k)
    dense = experts.mixture(kept / kept.sum(-1, keepdim=True), outputs(made, x))
    out, use = made(x)
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(made(x)[0], dense, rtol=0, atol=1e-5)
    single = made.float()(x.float())[0].double()
    torch.testing.assert_close(single, dense, rtol=0, atol=1e-5)
    assert use.choice.shape == (40 * top_k,)
    torch.testing.assert_close(use.probabilities.double().sum(-1), torch.ones(40, dtype=torch.float64))


def test_gradients_equal_the_dense_sum() -> None:
    """Of the input and of every weight, with each token's expert picked by a mask from all outputs."""
    made, x = layer(), tokens().requires_grad_()
    torch.manual_seed(1)
    target = torch.randn(40, DIM, dtype=torch.float64)
    alpha = functional.softmax(made.gate(x), -1)
    value, best = alpha.max(-1)
    picked = outputs(made, x)[torch.arange(40), best] * (value / value.detach()).unsqueeze(-1)
    wanted = torch.autograd.grad((picked * target).sum(), [x, *made.parameters()])
    found = torch.autograd.grad((made(x)[0] * target).sum(), [x, *made.parameters()])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_split_gradients_agree_with_finite_differences() -> None:
    made = layer()
    weights = [w.detach().requires_grad_() for w in (made.weight1, made.bias1, made.weight2, made.bias2)]
    counts = torch.tensor([3, 0, 2, 1, 0])
    x = tokens(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: experts.split(given[0], counts, *given[1:]), (x, *weights))


@pytest.mark.skipif(not hasattr(functional, "grouped_mm"), reason="this torch has no grouped matrix product")
def test_grouped_product_equals_split() -> None:
    torch.manual_seed(0)
    made = ExpertFeedForward(16, 32, 4)
    weights = (made.weight1, made.bias1, made.weight2, made.bias2)
    x, counts = torch.randn(11, 16), torch.tensor([4, 0, 6, 1])
    gradients = []
    results = []
    for run in (experts.split, experts.grouped):
        results.append(run(x, counts, *weights))
        gradients.append(torch.autograd.grad(results[-1].square().sum(), weights))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_token_is_dropped_where_one_expert_takes_all() -> None:
    made, x = layer(), tokens()
    made.gate.weight.data.zero_()
    made.gate.bias.data[3] = 50
    out, use = made(x)
    assert use.choice.tolist() == [3] * 40
    torch.testing.assert_close(out, made.run_one(3, x))
    out.sum().backward()
    gradient = made.weight1.grad
    assert gradient is not None
    assert [bool(gradient[k].any()) for k in range(K)] == [False, False, False, True, False]


def test_one_expert_is_the_dense_layer() -> None:
    torch.manual_seed(0)
    dense, made, x = FeedForward(DIM, HIDDEN), ExpertFeedForward(DIM, HIDDEN, 1), torch.randn(2, 7, DIM)
    made.weight1.data[0], made.bias1.data[0] = dense.fc1.weight.data, dense.fc1.bias.data
    made.weight2.data[0], made.bias2.data[0] = dense.fc2.weight.data, dense.fc2.bias.data
    torch.testing.assert_close(made(x)[0], dense(x))


def test_identical_copies_give_a_dense_gate_nothing_to_learn() -> None:
    """The sum over k of d alpha_k is 0, so a reconstruction loss cannot tell one copy from another."""
    x, target = tokens(), tokens().flip(0)
    nothing = gate_gradient(copies("dense"), x, target).abs().max().item()
    something = gate_gradient(layer("dense"), x, target).abs().max().item()
    assert nothing < 1e-15
    assert something > 1e-3


def test_a_dense_gate_learns_which_expert_is_better() -> None:
    """Descent along its gradient raises the probability of the one expert that gives the target."""
    made, x = layer("dense"), tokens()
    made.gate.weight.data.zero_()
    target = made.run_one(4, x).detach()
    (gradient,) = torch.autograd.grad((made(x)[0] - target).square().mean(), made.gate.bias)
    assert gradient.argmin() == 4


def test_a_scale_gate_only_hears_more_or_less_output() -> None:
    """Its gradient is that of log alpha of the chosen expert times <dL/dout, out>, whatever the other experts would do,
    and it is not zero for identical copies, among which there is nothing to choose."""
    made, x, target = layer("scale"), tokens(), tokens().flip(0)
    before = gate_gradient(made, x, target)
    out, use = made(x)
    pull = ((out - target).sign() / out.numel() * out).sum(-1).detach()
    chosen = use.probabilities.double().gather(-1, use.choice[:, None]).squeeze(-1)
    (expected,) = torch.autograd.grad((pull * chosen.log()).sum(), made.gate.weight)
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-7)

    made.gate.weight.data.zero_()
    made.gate.bias.data[2] = 1
    alone = gate_gradient(made, x, target)
    for k in (0, 1, 3, 4):
        made.weight2.data[k].normal_()
    assert torch.equal(gate_gradient(made, x, target), alone)
    assert gate_gradient(copies("scale"), x, target).abs().max() > 1e-3


@pytest.mark.parametrize("setting", ["scale", "dense"])
def test_frozen_experts_still_pass_a_gradient_to_what_stands_before(setting: experts.GateGradient) -> None:
    made, x = layer(setting), tokens().requires_grad_()
    for value in (made.weight1, made.bias1, made.weight2, made.bias2):
        value.requires_grad_(False)
    made(x)[0].square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    assert made.gate.weight.grad is not None
    assert made.weight1.grad is None


def test_bfloat16_autocast_agrees_to_its_precision() -> None:
    made, x = layer().float(), tokens().float().requires_grad_()
    exact = made(x)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        out, use = made(x)
    out.float().sum().backward()
    same = use.choice == made(x)[1].choice
    assert same.float().mean() > 0.9
    assert (out.float() - exact)[same].abs().max() < 0.05 * exact.abs().max()
    assert made.weight1.grad is not None
    assert made.weight1.grad.dtype == torch.float32
