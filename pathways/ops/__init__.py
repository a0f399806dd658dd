"""Compiled ops on activations and on packed pathways.

Every function here calls the op of the same name in ``torch.ops.pathways``. Compiled and exported
code may call either; TorchScript has no keyword-only arguments, so scripted code calls the op.
Schemas and CPU and CUDA kernels are in ``libpathways``, :mod:`pathways.ops.reference` has the same
functions in plain PyTorch.

A *mask* ``[N, D]`` holds 0 or 1 for each of D neurons of N inputs. *Words* are the same mask
packed: int64 ``[N, ceil(D / 64)]`` with neuron d in bit ``d % 64`` of word ``d // 64`` and the tail
bits zero: ops that are not told D count every bit. Rows of words may be slices of wider rows; no
copy is made of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import autograd as autograd
from . import fake as fake
from . import reference

__all__ = [
    "adaptive_avg_max_pool2d",
    "binarize",
    "class_frequency",
    "class_overlap",
    "gated_forward",
    "gated_forward_",
    "pack_bits",
    "pairwise_intersection",
    "pairwise_iou",
    "reference",
    "unpack_bits",
]

# Looked up once: a look-up takes as long as half a call.
_GATED_FORWARD = torch.ops.pathways.gated_forward.default
_ADAPTIVE_POOL = torch.ops.pathways.adaptive_avg_max_pool2d.default
_GATED_FORWARD_INPLACE = torch.ops.pathways.gated_forward_.default


def gated_forward(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    r"""Gate the activation of one site: :math:`g \cdot act(x + b) + (1 - g) \cdot baseline`.

    A gate of exactly 0 gives exactly the baseline value, whatever ``x`` is: NaN and infinity do not
    leak. A gate of exactly 1 gives exactly ``act(x + b)``; for ``none``, ``relu`` and ``relu6``
    that is the result of torch bit for bit, NaN included.

    Args:
        x (Tensor[N, C, ...]): values before the activation; float64, float32, bfloat16 or float16,
            with any number of trailing dimensions. Contiguous tensors and tensors whose channels
            are innermost in memory (channels_last in 4-D) are read as they are, others are made
            contiguous first.
        gate (Tensor): one value per channel, ``[N, C]``, ``[1, C]`` or ``[C]``, or one per unit, of
            the shape of ``x``; floating point, usually in [0, 1], or bool.
        bias (Tensor[C], optional): added to ``x``, floating point.
        activation (str): ``none``, ``relu``, ``relu6``, ``silu`` or ``gelu`` (the exact one, by
            erf).
        baseline (Tensor[C], optional): value of a neuron that is gated off, floating point; 0 by
            default.

    Returns:
        Tensor[N, C, ...]: dtype and memory order of ``x``; arithmetic is in float32, or float64 for
        float64. Empty where ``x`` is. Differentiable once with respect to ``x``, ``gate`` and
        ``bias``; the gradient of the gate is ``grad * (act(x + b) - baseline)`` also where the gate
        is 0. Gradients are reduced over channels in float32 blocks and float64 totals, in a fixed
        order: the results are deterministic on CPU and CUDA.

    Raises:
        RuntimeError: a dtype, shape, device or activation does not fit; the baseline requires a
            gradient; a
            derivative is taken by ``torch.func`` or in forward mode.

    Source:
        Gates on activations: Wang et al., "Interpret Neural Networks by Identifying Critical Data
        Routing Paths", CVPR 2018. Baseline values and the handling of exact 0 and 1 are our choice.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[-1.0, 2.0], [3.0, float("nan")]]])
        >>> gated_forward(x, torch.tensor([[1.0, 0.0]]), activation="relu")
        tensor([[[0., 2.],
                 [0., 0.]]])
    """
    return autograd.call_gated(_GATED_FORWARD, x, gate, bias, activation, baseline)


def gated_forward_(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    """Gate the activation of one site in place, for inference.

    The fast path on the CPU, where the page faults of a fresh output cost more than the arithmetic.

    Args:
        x (Tensor[N, C, ...]): as for :func:`gated_forward`; overwritten by the result.
        gate (Tensor): as for :func:`gated_forward`.
        bias (Tensor[C], optional): as for :func:`gated_forward`.
        activation (str): as for :func:`gated_forward`.
        baseline (Tensor[C], optional): as for :func:`gated_forward`.

    Returns:
        Tensor[N, C, ...]: ``x`` itself, with any strides it had. Not differentiable. Deterministic.

    Raises:
        RuntimeError: as for :func:`gated_forward`, or when an argument requires a gradient and
            gradients are enabled.

    Source:
        Our choice.

    Example:
        >>> import torch
        >>> x = torch.tensor([[-1.0, 2.0]])
        >>> _ = gated_forward_(x, torch.tensor([True, False]), baseline=torch.tensor([5.0, 7.0]))
        >>> x
        tensor([[-1.,  7.]])
    """
    autograd.call_gated(_GATED_FORWARD_INPLACE, x, gate, bias, activation, baseline, written=x)
    return x


def binarize(importance: Tensor, sigma: float = 1.0, gamma: float = 2.0) -> Tensor:
    r"""Turn importance into a 0/1 mask, with the gradient of distance-aware quantization.

    Forward: 1 above one half, 0 otherwise. Backward, with t the distance to the nearer level and
    :math:`\kappa = e^{-1/\sigma^2}`:

    .. math:: \frac{d\phi}{dr} = \frac{\gamma}{2 \sinh \gamma}
        \cdot \frac{e^{-t} + \kappa e^{-(1-t)}}{e^{-t} - \kappa e^{-(1-t)}}

    inside [0, 1] and 0 outside. It is positive, symmetric about one half and largest there.

    Args:
        importance (Tensor): any shape; float64, float32, bfloat16 or float16; usually in (0, 1).
        sigma (float): width of the kernel around the nearer level, positive. The larger, the more
            the gradient concentrates at one half.
        gamma (float): temperature, positive; only scales the gradient.

    Returns:
        Tensor: 0 or 1 in the shape and dtype of ``importance``, contiguous. Empty where
        ``importance`` is. Differentiable once with respect to ``importance``. Deterministic on CPU
        and CUDA. On CUDA, where looking for NaN would stall the stream, a NaN stays NaN in the
        mask.

    Raises:
        RuntimeError: ``importance`` is not floating point or contains NaN (on the CPU); ``sigma``
            or ``gamma`` is not positive and finite; the call is inside a ``torch.func`` transform
            or forward-mode differentiation.

    Source:
        Kim, Lee, Ham, "Distance-aware Quantization", ICCV 2021 (arXiv:2108.06983); the closed form
        for one bit is derived from it.

    Example:
        >>> import torch
        >>> a = torch.tensor([0.2, 0.5, 0.8], requires_grad=True)
        >>> mask = binarize(a)
        >>> mask.detach()
        tensor([0., 0., 1.])
        >>> mask.sum().backward()
        >>> a.grad
        tensor([0.4152, 0.5966, 0.4152])
    """
    return torch.ops.pathways.binarize(importance, sigma, gamma)


def adaptive_avg_max_pool2d(x: Tensor, height: int, width: int) -> Tensor:
    r"""Mean and maximum of every cell of a grid over each map, in one pass.

    The result of ``torch.cat([F.adaptive_avg_pool2d(x, size), F.adaptive_max_pool2d(x, size)], 1)``
    with ``size = (height, width)``. Row i of the grid covers rows
    :math:`\lfloor i H / height \rfloor` to :math:`\lceil (i + 1) H / height \rceil - 1` of the
    map, and columns likewise: cells overlap where the grid does not divide the map, and the grid
    may be finer than the map.

    Args:
        x (Tensor[N, C, H, W]): maps; float64, float32, bfloat16 or float16, with at least one row
            and one column. Contiguous and channels_last maps are read as they are, others are made
            contiguous first.
        height (int): rows of the grid, at least 1.
        width (int): columns of the grid, at least 1.

    Returns:
        Tensor[N, 2C, height, width]: means of all channels, then maxima of all; dtype of ``x``,
        contiguous. Sums are in float32, or float64 for float64. NaN in a cell makes both of its
        results NaN. Empty where N or C is 0. Differentiable any number of times with respect to
        ``x``, by the operations of torch, which look for the maxima once more: the first in a cell
        takes its gradient. Deterministic on CPU and CUDA; on CUDA the gradient is as deterministic
        as torch's.

    Raises:
        RuntimeError: ``x`` has another number of dimensions or dtype, or no row or column;
            ``height`` or ``width`` is less than 1; a derivative is taken by ``torch.func`` or in
            forward mode.

    Source:
        The cells are those of :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Example:
        >>> import torch
        >>> adaptive_avg_max_pool2d(torch.arange(12.0).view(1, 1, 3, 4), 1, 2)
        tensor([[[[ 4.5000,  6.5000]],
        <BLANKLINE>
                 [[ 9.0000, 11.0000]]]])
    """
    if torch.jit.is_scripting():
        result: Tensor = torch.ops.pathways.adaptive_avg_max_pool2d(x, height, width)
    else:  # left out by TorchScript
        result = autograd.call_pool(_ADAPTIVE_POOL, x, height, width)
    return result


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask into words.

    Args:
        mask (Tensor[N, D]): bool, integer or floating point, any strides. Every nonzero value
            counts as 1, NaN included; -0.0 is 0.

    Returns:
        Tensor[N, ceil(D / 64)]: int64, neuron d in bit ``d % 64`` of word ``d // 64``, tail bits
        zero; ``[N, 0]`` for D = 0. Not differentiable. Deterministic.

    Raises:
        RuntimeError: ``mask`` has another number of dimensions or dtype.

    Source:
        Our choice of bit order: that of ``numpy.packbits(bitorder="little")`` on little-endian
        machines.

    Example:
        >>> import torch
        >>> pack_bits(torch.tensor([[True, False, True], [False, False, False]]))
        tensor([[5],
                [0]])
    """
    return torch.ops.pathways.pack_bits(mask)


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Unpack words into a mask: the inverse of :func:`pack_bits`.

    Args:
        words (Tensor[N, ceil(size / 64)]): int64. Bits behind the last neuron are ignored.
        size (int): number of neurons D.

    Returns:
        Tensor[N, D]: bool. Not differentiable. Deterministic.

    Raises:
        RuntimeError: ``words`` is not int64, or its width does not belong to ``size``.

    Source:
        Our choice.

    Example:
        >>> import torch
        >>> unpack_bits(torch.tensor([[5], [0]]), 3)
        tensor([[ True, False,  True],
                [False, False, False]])
    """
    return torch.ops.pathways.unpack_bits(words, size)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Count the neurons that every pathway of ``a`` shares with every pathway of ``b``.

    Args:
        a (Tensor[N, W64]): words.
        b (Tensor[M, W64]): words of the same width.

    Returns:
        Tensor[N, M]: int32 counts, exact. Not differentiable. Deterministic.

    Raises:
        RuntimeError: an argument is not int64 with two dimensions, or the widths or devices differ.

    Source:
        Our choice.

    Example:
        >>> import torch
        >>> pairwise_intersection(torch.tensor([[7]]), torch.tensor([[5], [8]]))
        tensor([[2, 0]], dtype=torch.int32)
    """
    return torch.ops.pathways.pairwise_intersection(a, b)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    r"""Intersection over union of every pathway of ``a`` with every pathway of ``b``.

    .. math:: IoU(A, B) = \frac{|A \cap B|}{|A| + |B| - |A \cap B|}

    Args:
        a (Tensor[N, W64]): words.
        b (Tensor[M, W64]): words of the same width.

    Returns:
        Tensor[N, M]: float32 in [0, 1]; 1 where both pathways are empty. The counts are exact, the
        division is the only rounding (below 2^24 neurons). Not differentiable. Deterministic.

    Raises:
        RuntimeError: an argument is not int64 with two dimensions, or the widths or devices differ.

    Source:
        Jaccard index; the value of an empty union is our choice (two empty pathways are identical).

    Example:
        >>> import torch
        >>> pairwise_iou(torch.tensor([[3], [0]]), torch.tensor([[1], [0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]])
    """
    return torch.ops.pathways.pairwise_iou(a, b)


def class_overlap(words: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum the IoU of pairs of pathways by the classes of the two, without an N x N matrix.

    Args:
        words (Tensor[N, W64]): packed pathways.
        labels (Tensor[N]): int64 class of each, in [0, num_classes).
        num_classes (int): number of classes K.

    Returns:
        tuple of Tensor[K, K]: float64 sums and int64 numbers of pairs, both symmetric. On the
        diagonal every unordered pair i < k of a class counts once, elsewhere every pair of one
        pathway of each class. Two empty pathways have IoU 1. Zero for classes without pathways and
        for N = 0. Not differentiable. Deterministic, on the CPU also for any number of threads.

    Raises:
        RuntimeError: a dtype, shape or device does not fit, or (on the CPU) a label is out of
            range.

    Source:
        acIOU of arXiv:2309.09887 is the mean over classes of ``sums / pairs`` on the diagonal; the
        formula behind the name is inferred.

    Example:
        >>> import torch
        >>> sums, pairs = class_overlap(torch.tensor([[3], [1], [1]]), torch.tensor([0, 0, 1]), 2)
        >>> sums
        tensor([[0.5000, 1.5000],
                [1.5000, 0.0000]], dtype=torch.float64)
        >>> pairs
        tensor([[1, 2],
                [2, 0]])
    """
    return torch.ops.pathways.class_overlap(words, labels, num_classes)


def class_frequency(words: Tensor, labels: Tensor, num_classes: int, size: int) -> Tensor:
    """Count how often each neuron is in the pathways of each class.

    Args:
        words (Tensor[N, ceil(size / 64)]): packed pathways.
        labels (Tensor[N]): int64 class of each, in [0, num_classes).
        num_classes (int): number of classes K.
        size (int): number of neurons D.

    Returns:
        Tensor[K, D]: int64 counts, exact; zero for classes without pathways. Not differentiable.
        Deterministic.

    Raises:
        RuntimeError: a dtype, shape or device does not fit, or (on the CPU) a label is out of
            range.

    Source:
        Frequencies define class pathways as in arXiv:2309.09887 and EffectivePath
        (arXiv:1904.08089).

    Example:
        >>> import torch
        >>> class_frequency(torch.tensor([[3], [1], [4]]), torch.tensor([0, 0, 1]), 2, 3)
        tensor([[2, 1, 0],
                [0, 0, 1]])
    """
    return torch.ops.pathways.class_frequency(words, labels, num_classes, size)
