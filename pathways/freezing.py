"""The target as it must be for a run: eager, in eval mode, without parameter gradients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@dataclass
class _Frozen:
    """What has to be put back in a model, and by how many runs it is in use."""

    training: list[nn.Module]
    parameters: list[nn.Parameter]
    runs: int = 0


_frozen: dict[nn.Module, _Frozen] = {}
_frozen_lock = threading.Lock()


def _modules(model: nn.Module) -> list[nn.Module]:
    """``model.modules()`` in another order and without names: this walk is part of every run."""
    found = {model: None}
    waiting = [model]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found[module] = None
                waiting.append(module)
    return list(found)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; modes and flags are put back on exit.

    Parameters only have to be frozen during the forward pass, when autograd looks at
    ``requires_grad``. They are frozen also where no graph is recorded: a matrix product may round
    differently where a weight requires a gradient. Of runs that overlap (nested ones, or threads)
    the last one to end puts the model back.
    """
    with _frozen_lock:
        state = _frozen.get(model)
        if state is None:
            modules = _modules(model)
            parameters = {
                parameter: None
                for module in modules
                for parameter in module._parameters.values()
                if parameter is not None and parameter.requires_grad
            }
            state = _Frozen([module for module in modules if module.training], list(parameters))
            for module in state.training:
                module.training = False
            for parameter in state.parameters:
                parameter.requires_grad_(False)
            _frozen[model] = state
        state.runs += 1
    try:
        yield
    finally:
        with _frozen_lock:
            state.runs -= 1
            if state.runs == 0:
                del _frozen[model]
                for module in state.training:
                    module.training = True
                for parameter in state.parameters:
                    parameter.requires_grad_(True)


def in_checkpoint() -> bool:
    """Whether this runs inside ``torch.utils.checkpoint`` (``use_reentrant=False``).

    It works by hooks on what is saved for the backward pass; no public function tells.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = None if top is None else top(False)
    return hooks is not None and hooks[0].__qualname__.startswith("_checkpoint_hook")


def eager_module(model: Any) -> nn.Module:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise TypeError(f"GatedTarget: model must be an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"submodule {name!r}" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"GatedTarget: {where} must be an eager nn.Module, got the scripted module "
                f"{type(module).__name__}; pass the original module, pathways.export makes "
                "TorchScript from it"
            )
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise ValueError(
                f"GatedTarget: {where} must have its parameters, got an uninitialised "
                f"{type(module).__name__}; run the model once before"
            )
        # Compiled code does not see function modes or hooks added later (pytorch/pytorch#117758).
        compiled = hasattr(module, "_orig_mod") or (
            getattr(module, "_compiled_call_impl", None) is not None
        )
        if compiled:
            raise TypeError(
                f"GatedTarget: {where} must be an eager nn.Module, got a compiled module "
                f"({type(module).__name__}); pass the module before torch.compile (its _orig_mod)"
            )
    return model
