"""The paper's losses, one pure function an equation (4, 7 to 20); equations 5 and 6 stand in experts.py.

Shapes: B images, P patches, D pixels a patch, C channels. Patches (B, P, D) and images (B, C, H, W) are in normalised
units. A mask is true (or 1) on masked patches or pixels. Each loss is a float32 scalar tensor, a mean: over masked
pixels (4, 7), frequencies (12), rings (14) or all pixels (18 to 20), and over the batch.
Source: arXiv 2604.05960; the constants that it leaves open are arguments, with the value decided on as default.
"""

import torch
from torch import Tensor
from torch.nn import functional


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Eq. 4, L_MAE: mean of |prediction - target| over masked pixels; patches (B, P, D), mask (B, P)."""
    error = (prediction.float() - target).abs().mean(-1)
    return (error * mask).sum() / mask.sum()


def distillation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Eq. 7, L_KD: masked L1 of the student to the teacher's prediction from the same mask; the teacher is fixed."""
    return masked_l1(student, teacher.detach().float(), mask)


def gate_mean(probabilities: Tensor) -> Tensor:
    """Eq. 8: the mean (K,) of gate probabilities (tokens, K) over all tokens of a batch."""
    return probabilities.float().mean(0)


def balance(mean: Tensor) -> Tensor:
    """Eq. 9, L_LB: K times the sum of the squares of the K means; 1 where all are 1/K, K where one is 1."""
    return len(mean) * mean.square().sum()


def joint(reconstruction: Tensor, distilled: Tensor, balanced: Tensor, weight: float = 1.0, mu: float = 0.01) -> Tensor:
    """Eq. 10, L_joint = L_MAE + lambda L_KD + mu L_LB; `weight` is lambda."""
    return reconstruction + weight * distilled + mu * balanced


def pixel_mask(mask: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """A mask of patches (B, P) as one of pixels, float32 (B, 1, H, W)."""
    return mask.float().view(-1, 1, *grid).repeat_interleave(patch, -1).repeat_interleave(patch, -2)


def error_spectrum(prediction: Tensor, target: Tensor, mask: Tensor, norm: str = "ortho") -> Tensor:
    """Eq. 11, E = DFT2(M (prediction - target)): complex (B, C, H, W // 2 + 1), the half of it that real input leaves.

    Images (B, C, H, W), mask of pixels (B, 1, H, W). norm: `ortho` divides by sqrt(H W), `backward` by nothing.
    """
    return torch.fft.rfft2(mask * (prediction.float() - target), norm=norm)


def fft_amplitude(spectrum: Tensor, width: int) -> Tensor:
    """Eq. 12, L_FFT: mean of |E| over all frequencies; the half spectrum of eq. 11, of images `width` px wide."""
    counts = _column_counts(width, spectrum.device)
    return (spectrum.abs() * counts).sum() / (spectrum[..., 0].numel() * width)


def radial_psd(images: Tensor, rings: int | None = None, norm: str = "ortho") -> Tensor:
    """Eq. 13: the mean (B, C, R) of |DFT2|^2 over each of R rings of equal width in radial frequency, 0 to Nyquist.

    rings: R, by default half the shorter side. Ring r holds (r - 1)/(2R) <= |f| < r/(2R) cycles/px, the last one 0.5
    too; frequencies beyond, in the corners, are in none, and a ring without any is 0.
    """
    height, width = images.shape[-2:]
    rings = rings or min(height, width) // 2
    transform = torch.fft.rfft2(images.float(), norm=norm)
    power = transform.real.square() + transform.imag.square()
    index, counts = _rings(height, width, rings, images.device)
    sums = power.new_zeros(*power.shape[:-2], rings + 1)
    weighted = (power * _column_counts(width, images.device)).flatten(-2)
    return sums.index_add(-1, index, weighted)[..., :rings] / counts.clamp(min=1)


def psd_difference(
    prediction: Tensor, target: Tensor, mask: Tensor, rings: int | None = None, norm: str = "ortho", log1p: bool = True
) -> Tensor:
    """Eq. 14, L_PSD: mean over rings of |PSD(M prediction) - PSD(M target)|, of log(1 + PSD) where `log1p`."""
    ours, theirs = radial_psd(mask * prediction.float(), rings, norm), radial_psd(mask * target, rings, norm)
    return (ours.log1p() - theirs.log1p() if log1p else ours - theirs).abs().mean()


def frequency(amplitude: Tensor, psd: Tensor, eta: float = 1.0) -> Tensor:
    """Eq. 15, L_freq = L_FFT + eta L_PSD; with eta 1 and nu 0.1 each of the two weighs 0.1, as the paper has it."""
    return amplitude + eta * psd


def final(joint_loss: Tensor, frequency_loss: Tensor, nu: float = 0.1) -> Tensor:
    """Eq. 16, L_final = L_joint + nu L_freq."""
    return joint_loss + nu * frequency_loss


def kinship(tokens: Tensor, temperature: float = 0.2) -> Tensor:
    """How hard it is to find each image's other crop among all crops; tokens (B, D), 2 k and 2 k + 1 of one image.

    The cross-entropy of the softmax over cosines of the tokens divided by the temperature, a crop itself left out:
    ln (B - 1) where all are alike. Not of the paper: NT-Xent of Chen et al. 2020, A simple framework for contrastive
    learning of visual representations, without its projection.
    """
    directions = functional.normalize(tokens.float(), dim=-1)
    likeness = directions @ directions.T / temperature
    itself = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    other = torch.arange(len(tokens), device=tokens.device) ^ 1
    return functional.cross_entropy(likeness.masked_fill(itself, -torch.inf), other)


def adaptation(charbonnier_: Tensor, edge_: Tensor, variation: Tensor, edge_weight: float, tv_weight: float) -> Tensor:
    """Eq. 17, L_total = L_Charb + lambda_e L_edge + lambda_tv L_TV; l1: both 0; l1_tv: 3 and 10."""
    return charbonnier_ + edge_weight * edge_ + tv_weight * variation


def charbonnier(restored: Tensor, reference: Tensor, full_scale: float = 1.0) -> Tensor:
    """Eq. 18, L_Charb: mean of sqrt(difference^2 + epsilon^2), epsilon = 1e-3 of the full scale.

    full_scale: what gray levels 0..255 span in the units given: 1 for gray / 255, 1 / std for normalised images.
    """
    return ((restored.float() - reference).square() + (1e-3 * full_scale) ** 2).sqrt().mean()


def edge(restored: Tensor, reference: Tensor) -> Tensor:
    """Eq. 19, L_edge: L1 norm of the difference of gradients along x and y, per pixel; forward differences."""
    return total_variation(restored.float() - reference)


def total_variation(restored: Tensor) -> Tensor:
    """Eq. 20, L_TV: sum of |forward difference| along x and along y, per pixel; there is none beyond the last pixel."""
    x = restored.float()
    return (x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()) / x.numel()


def _column_counts(width: int, device: torch.device) -> Tensor:
    """How often each column of a half spectrum occurs in the whole one: float32 (W // 2 + 1,)."""
    counts = torch.full((width // 2 + 1,), 2.0, device=device)
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    return counts


def _rings(height: int, width: int, rings: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ring of each frequency of the half spectrum, flat, `rings` for none; how many of the whole one each has."""
    radius = torch.hypot(
        torch.fft.fftfreq(height, device=device, dtype=torch.float64)[:, None],
        torch.fft.rfftfreq(width, device=device, dtype=torch.float64)[None, :],
    )
    index = (radius * (2 * rings) + 1e-9).floor().long()
    index = torch.where(radius > 0.5 + 1e-12, rings, index.clamp(max=rings - 1)).flatten()
    counts = torch.zeros(rings + 1, device=device)
    counts.index_add_(0, index, _column_counts(width, device).expand(height, -1).flatten())
    return index, counts[:rings]
