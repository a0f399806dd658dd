"""Targets named by a specification (factory, torchvision, timm, exported program), and weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from pathways.files import replace_file
from pathways.preprocessing import Preprocessing
from pathways.target import GatedTarget, device_of
from pathways.training.data import load_factory

TARGET_FORMS = "file.py:factory, module:factory, torchvision:NAME, timm:NAME, FILE.pt2"


def load_target(
    spec: str, weights: str | os.PathLike[str] | None = None, *, pretrained: bool = True
) -> nn.Module:
    """Make the classifier that a specification names, in eval mode. Nothing is downloaded.

    Args:
        spec (str): ``file.py:factory`` or ``module:factory`` (a function without arguments that
            returns the model; this runs the code), ``torchvision:NAME`` or ``timm:NAME`` (with the
            library's own pretrained weights if they are in its cache, unless ``weights`` is given),
            or ``FILE.pt2`` (a ``torch.export`` program).
        weights (path or None): state_dict to load: ``.safetensors``, or ``.pt``/``.pth`` (read with
            ``weights_only=True``).
        pretrained (bool): False takes torchvision's and timm's models untrained, which is enough to
            list their sites.

    Raises:
        FileNotFoundError: a file or pretrained weights that are not there; how to get them.
        ValueError: an unknown form or name, a factory that fails, weights that do not fit.

    Example:
        >>> type(load_target("pathways.models:digits_net")).__name__
        'Sequential'
    """
    name, _, rest = spec.partition(":")
    if spec.endswith(".pt2"):
        model = _exported_program(spec)
    elif name == "torchvision" and rest:
        model = _torchvision_model(rest, pretrained and weights is None)
    elif name == "timm" and rest:
        model = _timm_model(rest, pretrained and weights is None)
    elif rest:
        model = _from_factory(spec)
    else:
        raise ValueError(f"target must be one of {TARGET_FORMS}; got {spec!r}")
    if weights is not None:
        load_weights(model, weights)
    for module in model.modules():  # exported programs refuse .eval()
        module.training = False
    return model


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a state_dict file into a model; every parameter must be there and fit.

    A state_dict inside a checkpoint (key ``state_dict`` or ``model``) and the ``module.`` prefix of
    ``DataParallel`` are recognised.

    Args:
        model (nn.Module): changed in place.
        path (path): ``.safetensors``, or ``.pt``/``.pth``, which cannot execute code either
            (``weights_only=True``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown kind of file, damaged, or not for this model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except (SafetensorError, UnicodeDecodeError) as error:
            raise ValueError(
                f"weights {path} are damaged or not a safetensors file ({error})"
            ) from error
    elif path.suffix in (".pt", ".pth"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise ValueError(
                f"weights {path} must be a state_dict that loads with weights_only=True "
                f"({first_line(error)})"
            ) from error
    else:
        raise ValueError(f"weights must be a .safetensors, .pt or .pth file, got {path}")
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights {path} must hold a state_dict (names and tensors)")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = model.state_dict()
    for kind, names in (
        ("lack", [n for n in own if n not in state and not n.endswith("num_batches_tracked")]),
        ("have an unexpected", [n for n in state if n not in own]),
        (
            "have another shape for",
            [n for n in own if n in state and own[n].shape != state[n].shape],
        ),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"weights {path} do not fit {type(model).__name__}: they {kind} {names[0]}{more}"
            )
    model.load_state_dict(state, strict=False)


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state_dict as safetensors, in one step; :func:`load_weights` reads it.

    Raises:
        OSError: the file cannot be written; an old one is left as it was.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replace_file(path) as temporary:
        temporary.write_bytes(save(state))


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Whatever goes wrong in code that is not ours becomes one sentence that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"target {spec}: making it failed with {type(error).__name__}: {first_line(error)}"
        ) from error


def _from_factory(spec: str) -> nn.Module:
    try:
        factory = load_factory(spec)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"target {error}") from error
    except Exception as error:  # the module's own code
        raise ValueError(
            f"target {spec}: importing it failed with {type(error).__name__}: {first_line(error)}"
        ) from error
    with _named(spec):
        model = factory()
    if not isinstance(model, nn.Module):
        raise ValueError(f"target {spec}: must return an nn.Module, got {type(model).__name__}")
    return model


def _exported_program(spec: str) -> nn.Module:
    if not Path(spec).is_file():
        raise FileNotFoundError(f"target {spec}: there is no such file")
    try:
        program = torch.export.load(spec)
        module: nn.Module = program.module()
    except Exception as error:  # archives fail in many ways
        raise ValueError(
            f"target {spec} must be a torch.export program (torch.export.save): {first_line(error)}"
        ) from error
    return module


def _torchvision_model(name: str, pretrained: bool) -> nn.Module:
    spec = f"torchvision:{name}"
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"target {spec}: torchvision is not installed; pip install 'pathways[models]'"
        ) from error
    if name not in models.list_models():
        raise ValueError(f"target {spec}: torchvision has no model of that name")
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    if weights is not None:
        _check_cached(spec, weights.url)
    with _named(spec):
        model: nn.Module = models.get_model(name, weights=weights)
    return model


def _check_cached(spec: str, url: str) -> None:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.is_file():
        raise FileNotFoundError(
            f"target {spec}: its weights are not on this machine and are not downloaded unasked; "
            f"fetch {url} to {cached}, or name a state_dict file with --weights"
        )


def _timm_model(name: str, pretrained: bool) -> nn.Module:
    spec = f"timm:{name}"
    try:
        import timm
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"target {spec}: timm is not installed; pip install 'pathways[models]'"
        ) from error
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"target {spec}: timm has no model of that name")
    if pretrained:
        _check_timm_weights(spec, timm.get_pretrained_cfg(name))
    with _named(spec):
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    return model


def _check_timm_weights(spec: str, config: Any) -> None:
    """Refuse pretrained weights that are neither in the Hugging Face cache nor in torch.hub's."""
    repository = getattr(config, "hf_hub_id", None)
    if repository:
        from huggingface_hub import (  # type: ignore[import-not-found]
            try_to_load_from_cache,
        )

        for file in ("model.safetensors", "pytorch_model.bin"):
            if isinstance(try_to_load_from_cache(repository, file), str):
                return
        raise FileNotFoundError(
            f"target {spec}: its weights are not on this machine and are not downloaded unasked; "
            f"fetch them with `hf download {repository}`, or name a state_dict file with --weights"
        )
    url = getattr(config, "url", "")
    if not url:
        raise FileNotFoundError(
            f"target {spec}: timm has no pretrained weights for it; name a file with --weights"
        )
    _check_cached(spec, url)


def gate(
    model: nn.Module,
    preprocessing: Preprocessing,
    image_shape: Sequence[int],
    *,
    granularity: str = "channel",
    sites: Sequence[str] | None = None,
) -> GatedTarget:
    """A GatedTarget for images of a shape; its sites are found on a black and a white image.

    Args:
        model (nn.Module): the classifier.
        preprocessing (Preprocessing): from images to model inputs.
        image_shape (sequence of int): (C, H, W) of the images.
        granularity (str): ``"channel"`` or ``"unit"``.
        sites (sequence of str or None): globs.

    Raises:
        ValueError, TypeError, RuntimeError: the model does not take such images or cannot be gated.
    """
    example = torch.stack([torch.zeros(*image_shape), torch.ones(*image_shape)])
    inputs = preprocessing(example).to(device_of(model))
    try:
        return GatedTarget(model, inputs, granularity=granularity, sites=sites)
    except RuntimeError as error:
        raise ValueError(
            f"the target must accept inputs of shape [N, {', '.join(map(str, inputs.shape[1:]))}], "
            f"but it fails on them: {first_line(error)}"
        ) from error


def default_preprocessing(spec: str, channels: int) -> Preprocessing:
    """What a target expects as far as its specification tells.

    Args:
        spec (str): target specification. torchvision and timm state mean, deviation and size of
            every model; other targets are taken to want images in [0, 1] as they are.
        channels (int): of the images.
    """
    name, _, rest = spec.partition(":")
    if name == "torchvision" and importlib.util.find_spec("torchvision"):
        from torchvision import models

        if rest in models.list_models():
            transforms = models.get_model_weights(rest).DEFAULT.transforms()
            side = transforms.crop_size[0]
            return Preprocessing(transforms.mean, transforms.std, (side, side))
    if name == "timm" and importlib.util.find_spec("timm"):
        import timm

        if timm.is_model(rest.split(".")[0]):
            config = timm.get_pretrained_cfg(rest)
            return Preprocessing(config.mean, config.std, config.input_size[1:])
    return Preprocessing([0.0] * channels, [1.0] * channels)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
