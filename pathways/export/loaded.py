"""Explainers loaded from files: one set of methods, whatever the format of the file."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pathways.explainer import Explanation
from pathways.export.arguments import check_inputs, check_known, check_words, checked_classes
from pathways.export.capture import first_line
from pathways.pathway import Pathway
from pathways.sites import Sites


class LoadedExplainer(ABC):
    """An explainer from a file; see :class:`pathways.export.ScriptedExplainer` for the methods.

    All take images as the preprocessing in the file takes them. Wrong arguments raise a
    ``ValueError`` with one sentence.

    Args:
        info (dict): description of the file.
    """

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.sites = Sites.from_json(info)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.info["classes"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the target inside."""
        return str(self.info["fingerprint"])

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, gated logits, importance and words of a batch of images."""

    def explain(self, images: Tensor) -> Explanation:
        """The same as the explanation that an eager explainer returns."""
        logits, gated_logits, importance, words = self(images)
        return Explanation(
            logits, gated_logits, importance, Pathway(words, self.sites, self.fingerprint)
        )

    @abstractmethod
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits and importance, without the gated run."""

    @abstractmethod
    def transfer(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Gated logits under the class pathways in the file."""

    @abstractmethod
    def pathway_gradient(
        self, images: Tensor, classes: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        """Gradient of the class logit with respect to the model input under the pathway."""

    @abstractmethod
    def grad_cam(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        words: Tensor | None = None,
        site: int = -1,
    ) -> Tensor:
        """Grad-CAM of the gated run."""

    @abstractmethod
    def to(self, device: torch.device | str) -> LoadedExplainer:
        """Move to a device, in place."""


class TorchScriptExplainer(LoadedExplainer):
    """An explainer from a TorchScript file.

    The methods run without TorchScript's optimiser: it gains nothing here (the time is spent inside
    convolutions), and it compiles for seconds in the first two calls of every method.

    Args:
        module (torch.jit.ScriptModule): the loaded module; its attributes and buffers are there.
        info (dict): its description.
    """

    def __init__(self, module: torch.jit.ScriptModule, info: dict[str, Any]) -> None:
        super().__init__(info)
        self.module = module

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._run("forward", images)

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._run("importance", images)

    def transfer(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        return self._run("transfer", images, classes)

    def pathway_gradient(
        self, images: Tensor, classes: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        return self._run("pathway_gradient", images, classes, words)

    def grad_cam(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        words: Tensor | None = None,
        site: int = -1,
    ) -> Tensor:
        return self._run("grad_cam", images, classes, words, site)

    def to(self, device: torch.device | str) -> TorchScriptExplainer:
        self.module.to(device)
        return self

    def _run(self, method: str, *args: Any) -> Any:
        try:
            with torch.jit.optimized_execution(False):
                return getattr(self.module, method)(*args)
        except torch.jit.Error as error:
            # Raised by the module's own checks: the sentence follows TorchScript's traceback.
            raise ValueError(str(error).strip().rpartition("builtins.ValueError: ")[2]) from None


class CompiledExplainer(LoadedExplainer):
    """An explainer from an AOTInductor file: native code for the machine it was compiled for.

    Images must be on the CPU and have the size and dtype that ``info["models"]`` names. A model is
    loaded when a method needs it for the first time; all of them share one set of constants. No
    gradient flows through the results, and inference mode makes no difference.

    Args:
        path (str): the file, which must stay there.
        info (dict): its description.
        constants (dict of Tensor): by name.
    """

    def __init__(self, path: str, info: dict[str, Any], constants: dict[str, Tensor]) -> None:
        super().__init__(info)
        self.path = path
        self.constants = constants
        self._models: dict[str, Any] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self._inputs(images)
        logits, importance, words = self._run("importance", x)
        (gated_logits,) = self._run("gated", x, words)
        return logits, gated_logits, importance, words

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, importance, _ = self._run("importance", self._inputs(images))
        return logits, importance

    def transfer(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        x = self._inputs(images)
        if classes is None:
            chosen = self._run("importance", x)[0].argmax(1)
        else:
            chosen = checked_classes(classes, x, len(self.classes))
        check_known(chosen, self.constants["class_counts"])
        logits: Tensor = self._run("gated", x, self.constants["class_words"][chosen])[0]
        return logits

    def pathway_gradient(
        self, images: Tensor, classes: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        x = self._inputs(images)
        gradient: Tensor = self._run("pathway_gradient", x, *self._defaults(x, classes, words))[0]
        return gradient

    def grad_cam(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        words: Tensor | None = None,
        site: int = -1,
    ) -> Tensor:
        compiled = self.info["cam_site"]
        if compiled < 0:
            raise ValueError("grad_cam: the target must have a site with a 2-D map, got none")
        if site not in (-1, compiled):
            raise ValueError(
                f"grad_cam: site must be {compiled}, the one that was compiled, got {site}"
            )
        x = self._inputs(images)
        map: Tensor = self._run("grad_cam", x, *self._defaults(x, classes, words))[0]
        return map

    def to(self, device: torch.device | str) -> CompiledExplainer:
        if torch.device(device).type != self.info["device"]:
            raise ValueError(
                f"explainer: device must be {self.info['device']}, which the file was compiled "
                f"for, got {device}"
            )
        return self

    def _inputs(self, images: Tensor) -> Tensor:
        """Model inputs. What compiled code is given must be right: it does not look."""
        models = self.info["models"]
        if "preprocess" in models:
            wanted = models["preprocess"]["inputs"][0]["shape"]
            shape = list(images.shape)
            pairs = zip(wanted[1:], shape[1:], strict=False)
            if len(shape) != len(wanted) or any(a not in (None, b) for a, b in pairs):
                sides = ", ".join("any" if side is None else str(side) for side in wanted[1:])
                raise ValueError(
                    f"explainer: images must be batches of shape [{sides}], got {shape}"
                )
        else:
            check_inputs(images, self.info["input_shape"], True)
        first = models["preprocess" if "preprocess" in models else "importance"]["inputs"][0]
        found = str(images.dtype).removeprefix("torch.")
        if found != first["dtype"]:
            raise ValueError(f"explainer: images must be {first['dtype']}, got {found}")
        if images.device.type != self.info["device"]:
            raise ValueError(
                f"explainer: images must be on the {self.info['device']}, which the file was "
                f"compiled for, got {images.device}"
            )
        if "preprocess" not in models:
            return images
        if 0 in images.shape[2:]:
            raise ValueError(f"explainer: images must not be empty, got {list(images.shape)}")
        x: Tensor = self._run("preprocess", images)[0]
        return x

    def _defaults(
        self, x: Tensor, classes: Tensor | None, words: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if words is not None:
            check_words(words, x, self.sites.num_words)
            if words.dtype != torch.int64:
                raise ValueError(f"words must be int64, got {words.dtype}")
            words = words.to(x.device).expand(len(x), -1)
        if classes is not None:
            classes = checked_classes(classes, x, len(self.classes))
        if classes is None or words is None:
            logits, _, own = self._run("importance", x)
            classes = logits.argmax(1) if classes is None else classes
            words = own if words is None else words
        return classes, words

    def _run(self, name: str, *arguments: Tensor) -> list[Tensor]:
        if name not in self._models:
            self._models[name] = self._load(name)
        # Compiled code takes the strides that it was compiled for, whatever it is given.
        given = [argument.detach().contiguous() for argument in arguments]
        results: list[Tensor] = self._models[name].boxed_run(given)
        return results

    def _load(self, name: str) -> Any:
        try:
            # Not torch._inductor.package.load_package: that loads all models to return one.
            model = torch._C._aoti.AOTIModelPackageLoader(self.path, name, False, 1, -1)
            constants = {key: _view(self.constants[key]) for key in model.get_constant_fqns()}
            model.load_constants(constants, False, True, True)  # shared, not copied
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{self.path} was compiled with torch {self.info.get('torch')} and pathways "
                f"{self.info.get('pathways')} and does not load with torch {torch.__version__}: "
                f"{first_line(error)}"
            ) from error
        return model


def _view(tensor: Tensor) -> Tensor:
    """The same memory in a tensor that does not own it.

    Torch never frees the handles that it makes of constants it is to share, and whatever they own
    would stay with them: all weights of every explainer that was ever loaded.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return tensor
    size = tensor.numel() * tensor.element_size()
    memory = (ctypes.c_byte * size).from_address(tensor.data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride())
