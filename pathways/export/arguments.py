"""Checks of what callers give, shared by scripted and compiled explainers. Scriptable.

No ``from __future__ import annotations`` here: TorchScript reads annotations as objects.
"""

from torch import Tensor


def check_inputs(x: Tensor, wanted: list[int], exact: bool) -> None:
    """Refuse model inputs of another shape; torch's own message would name some layer instead.

    Args:
        x (Tensor[N, ...]): model inputs.
        wanted (list of int): shape of one.
        exact (bool): all of it must agree, else the number of dimensions and the first one.
    """
    same = x.dim() == len(wanted) + 1
    if same and exact:
        same = list(x.shape[1:]) == wanted
    elif same and len(wanted) > 0:
        same = x.size(1) == wanted[0]
    if not same:
        raise ValueError(
            f"explainer: model inputs must be batches of shape {wanted}, got {list(x.shape)}"
        )


def checked_classes(classes: Tensor, x: Tensor, num_classes: int) -> Tensor:
    """One class per input, int64 and on the inputs' device."""
    if classes.dim() != 1 or classes.size(0) != x.size(0):
        raise ValueError(f"classes must be int64 of shape [{x.size(0)}], got {list(classes.shape)}")
    if classes.is_floating_point():
        raise ValueError("classes must be int64, got floating point")
    chosen = classes.to(x.device).long()
    if chosen.numel() > 0:
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(f"classes must be in [0, {num_classes}), got {wrong}")
    return chosen


def check_known(classes: Tensor, counts: Tensor) -> None:
    """Refuse classes without a class pathway.

    Args:
        classes (Tensor[N], int64): in range.
        counts (Tensor[K], int64): inputs behind each class pathway; empty without class pathways.
    """
    if counts.size(0) == 0:
        raise ValueError("transfer: this explainer was exported without class pathways")
    empty = classes[counts[classes] == 0]
    if empty.numel() > 0:
        raise ValueError(f"transfer: class {int(empty[0])} is empty, no input was predicted as it")


def check_words(words: Tensor, x: Tensor, num_words: int) -> None:
    """Refuse packed pathways of another width or number."""
    fits = words.dim() == 2 and words.size(1) == num_words
    if not fits or (words.size(0) != x.size(0) and words.size(0) != 1):
        raise ValueError(
            f"words must be [{x.size(0)}, {num_words}] or [1, {num_words}], got {list(words.shape)}"
        )
