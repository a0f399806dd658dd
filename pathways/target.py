"""GatedTarget: a frozen classifier whose activations can be recorded and gated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pathways import ops
from pathways.sites import Selector, Site, Sites

# Every callable under which PyTorch spells an activation. Modules (nn.ReLU) call these too, so that
# one interception serves modules, reused modules, functional calls and exported graphs alike.
_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.elu: "elu",
    F.elu_: "elu",
    F.mish: "mish",
    F.selu: "selu",
    torch.selu: "selu",
    torch.selu_: "selu",
    F.celu: "celu",
    F.prelu: "prelu",
    torch.prelu: "prelu",
    Tensor.prelu: "prelu",
}
_INPLACE_CALLS = frozenset({torch.relu_, Tensor.relu_, F.leaky_relu_, F.elu_, torch.selu_})
# What the fused kernel computes bit for bit as torch does (comparisons only, no transcendental).
_FUSED = frozenset({"relu", "relu6"})
_TOKEN_MARK = "_pathways_channels_last_dim"


class _Activations(TorchFunctionMode):
    """Calls ``handler(call number, function, args, kwargs, activation name)`` for each activation.

    Sites are identified by their order: a network in eval mode makes the same activation calls in
    the same order every time. Function modes are thread-local and leave no trace in the model.
    """

    def __init__(self, handler: Callable[..., Any], mark_tokens: bool = False) -> None:
        super().__init__()
        self.handler = handler
        self.mark_tokens = mark_tokens
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        activation = _ACTIVATIONS.get(func)
        if activation is not None:
            call = self.calls
            self.calls += 1
            return self.handler(call, func, args, kwargs, activation)
        output = func(*args, **kwargs)
        if self.mark_tokens and func is F.linear and output.dim() > 2:
            setattr(output, _TOKEN_MARK, True)
        return output


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; modes and flags are put back on exit.

    Parameters only have to be frozen while the graph is recorded: autograd looks at
    ``requires_grad`` during the forward pass.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module, training in modes:
            if training:
                module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in parameters:
            parameter.requires_grad_(True)


class GatedTarget:
    """A classifier to explain: clean runs, recorded feature maps, and gated runs.

    A site is one call of an activation function (ReLU, ReLU6, SiLU, GELU, Hardswish, LeakyReLU,
    ELU, SELU, CELU, Mish, PReLU), made by a module or directly, in place or not; a reused module
    has one site per call. In a gated run the activation z of a site becomes
    ``gate * z + (1 - gate) * baseline``. With all-ones gates the logits are the clean logits bit
    for bit. The model is run in eval mode with frozen parameters and left as it was found (modes,
    ``requires_grad``, hooks), also after an exception; no parameter receives a gradient.

    Args:
        model (nn.Module): an eager classifier; ``DataParallel`` wrappers are taken off.
        example_input (Tensor[N, ...]): an input the model accepts; used once to find the sites.
        granularity (str): ``"channel"`` (default) or ``"unit"``.
        sites (str, list of str, callable or None): which activations are sites, see
            :meth:`pathways.sites.Sites.select`; None takes all.
        baseline (sequence of Tensor or None): what replaces a gated-off activation, one tensor per
            site, ``[C]`` (or ``[C, *space]`` for units); None is zero. See :meth:`mean_baseline`.
        output_fn (callable or None): maps the model's output to logits ``[N, K]`` where it is not a
            tensor already.
        activation_modules (sequence of module types): further modules whose output is an
            activation, for models with activations of their own making.

    Raises:
        TypeError: not an ``nn.Module``, or a scripted or compiled module.
        ValueError: no activation found, or the selector matches nothing.
        RuntimeError: a run's activations differ from those found with ``example_input``.

    Source: the idea of gating is arXiv:2309.09887's; what counts as a site is our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> [site.key for site in target.sites], target.num_classes
        (['1#0'], 3)
        >>> x = torch.randn(5, 4)
        >>> torch.equal(target.gated(x, [torch.ones(5, 8)]), target(x))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        *,
        granularity: str = "channel",
        sites: Selector = None,
        baseline: Sequence[Tensor] | None = None,
        output_fn: Callable[[Any], Tensor] | None = None,
        activation_modules: Sequence[type[nn.Module]] = (),
    ) -> None:
        self.model = _eager_module(model)
        self.output_fn = output_fn
        self.activation_modules = tuple(activation_modules)
        if not isinstance(example_input, Tensor) or example_input.dim() < 1:
            raise TypeError(
                "GatedTarget: example_input must be a batched tensor, "
                f"got {type(example_input).__name__}"
            )
        self.example_shape: tuple[int, ...] = tuple(example_input.shape[1:])
        found, logits = self._discover(example_input, granularity)
        self._num_calls = len(found)
        self._call_names = [site.activation for site, _ in found]
        candidates = Sites((site for site, batched in found if batched), granularity=granularity)
        if len(candidates) == 0:
            raise ValueError(
                f"GatedTarget: {type(self.model).__name__} must have at least one activation "
                "(ReLU, ReLU6, SiLU, GELU, Hardswish, LeakyReLU, ...), found none; name modules "
                "with activations of their own through activation_modules"
            )
        self.sites: Sites = candidates.select(sites)
        self.num_classes: int = logits.shape[1]
        chosen = {site: position for position, site in enumerate(self.sites)}
        self._site_of_call: list[int | None] = [chosen.get(site) for site, _ in found]
        self._overwritten: set[int] = set()
        self._find_overwritten(example_input)
        self._baseline: list[Tensor] | None = None
        self.baseline = baseline

    # ------------------------------------------------------------------ public

    def __call__(self, images: Tensor) -> Tensor:
        """Clean logits ``[N, K]``, without gradient."""
        with torch.no_grad(), frozen(self.model):
            return self._logits(self.model(images))

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Clean logits ``[N, K]`` and every site's activation ``[N, C, *space]``, detached."""
        records: list[Tensor | None] = [None] * len(self.sites)

        def record(site: int, output: Tensor) -> None:
            # A later in-place call may write into this activation; only then is a copy needed.
            kept = output.clone() if site in self._overwritten else output
            records[site] = self._channels_first(site, kept)

        with torch.no_grad():
            logits = self._run(images, observe=record)
        return logits, [record for record in records if record is not None]

    def gated(
        self,
        images: Tensor,
        gates: Sequence[Tensor] | Tensor,
        *,
        observe: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Logits ``[N, K]`` of the gated run, differentiable in ``gates`` and ``images``.

        Args:
            images (Tensor[N, ...]): inputs.
            gates (sequence of Tensor, or Tensor[N, D]): one gate per site, ``[N, C]`` (channel) or
                ``[N, C, *space]`` (unit), or all of them flat; N may be 1 for all inputs; floating
                or bool, values in [0, 1].
            observe (callable or None): called with (site index, gated activation) of every site.

        Raises:
            ValueError: wrong number of gates or wrong shape, naming the site.
            TypeError: a gate that is neither floating nor bool.
        """
        return self._run(images, gates=self._check_gates(images, gates), observe=observe)

    @property
    def baseline(self) -> list[Tensor] | None:
        """What replaces gated-off activations, one tensor per site; None is zero."""
        return self._baseline

    @baseline.setter
    def baseline(self, values: Sequence[Tensor] | None) -> None:
        if values is not None:
            if len(values) != len(self.sites):
                raise ValueError(
                    f"GatedTarget: baseline must hold one tensor per site ({len(self.sites)}), "
                    f"got {len(values)}"
                )
            for i, value in enumerate(values):
                if tuple(value.shape) != self.sites.mask_shape(i):
                    raise ValueError(
                        f"GatedTarget: baseline of site {self.sites[i].key} must have shape "
                        f"{self.sites.mask_shape(i)}, got {tuple(value.shape)}"
                    )
        self._baseline = None if values is None else [value.detach() for value in values]

    @torch.no_grad()
    def mean_baseline(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """Mean activation of every neuron over a data set, in the shape ``baseline`` takes.

        Args:
            batches (iterable of Tensor[N, ...]): input batches; read once.

        Returns:
            list of Tensor: ``[C]`` per site (channel granularity), ``[C, *space]`` (unit).
        """
        sums: list[Tensor] = []
        count = 0
        for images in batches:
            _, features = self.features(images)
            count += images.shape[0]
            for i, feature in enumerate(features):
                value = feature.double()
                if self.sites.granularity == "channel":
                    value = value.flatten(2).mean(2) if value.dim() > 2 else value
                if len(sums) <= i:
                    sums.append(torch.zeros_like(value[0]))
                sums[i] += value.sum(0)
        if count == 0:
            raise ValueError("GatedTarget.mean_baseline: expected at least one batch, got none")
        dtype = features[0].dtype
        return [(total / count).to(dtype) for total in sums]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of parameters, buffers and site table; files are checked against it."""
        digest = hashlib.sha256(json.dumps(self.sites.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter or buffer; the CPU for a model without any."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            return tensor.device
        return torch.device("cpu")

    def __repr__(self) -> str:
        return (
            f"GatedTarget({type(self.model).__name__}, {len(self.sites)} sites, "
            f"{self.sites.num_neurons} {self.sites.granularity} neurons, "
            f"{self.num_classes} classes)"
        )

    # ------------------------------------------------------------------ discovery

    def _discover(
        self, example_input: Tensor, granularity: str
    ) -> tuple[list[tuple[Site, bool]], Tensor]:
        """One clean run: every activation call and whether it keeps the batch dimension."""
        Sites([], granularity)  # the granularity is checked before anything is run
        paths = {module: name for name, module in self.model.named_modules()}
        stack: list[str] = [""]
        counts: dict[str, int] = {}
        found: list[tuple[Site, bool]] = []
        batch = example_input.shape[0]

        def handler(call: int, func: Any, args: Any, kwargs: Any, name: str) -> Tensor:
            source = args[0] if args else kwargs["input"]
            token = getattr(source, _TOKEN_MARK, False)
            output = func(*args, **kwargs)
            batched = output.dim() >= 2 and output.shape[0] == batch
            path = stack[-1]
            channel_dim = -1 if token else 1
            shape = tuple(output.movedim(-1, 1).shape if token and batched else output.shape)[1:]
            site = Site(path, counts.get(path, 0), name, shape or (1,), channel_dim)
            counts[path] = site.call + 1
            found.append((site, batched))
            return output

        def enter(module: nn.Module, _: Any) -> None:
            stack.append(paths[module])

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            stack.pop()

        handles = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            intercept = self._intercept(handler, mark_tokens=True)
            with torch.no_grad(), frozen(self.model), intercept:
                output = self.model(example_input)
        finally:
            for handle in handles:
                handle.remove()
        logits = self._logits(output)
        return found, logits

    def _find_overwritten(self, example_input: Tensor) -> None:
        """Note the sites whose activation is written into later (in-place calls)."""
        versions: dict[int, tuple[Tensor, int]] = {}

        def record(site: int, output: Tensor) -> None:
            versions[site] = (output, output._version)

        with torch.no_grad():
            self._run(example_input, observe=record)
        self._overwritten = {
            site for site, (output, version) in versions.items() if output._version != version
        }

    # ------------------------------------------------------------------ running

    @contextmanager
    def _intercept(
        self, handler: Callable[..., Any], mark_tokens: bool = False
    ) -> Iterator[_Activations]:
        """Route every activation call, by function or by ``activation_modules``, to ``handler``."""
        mode = _Activations(handler, mark_tokens)
        handles = []

        def module_hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            call = mode.calls
            mode.calls += 1
            result: Tensor = handler(
                call, lambda x: x, (output,), {}, type(module).__name__.lower()
            )
            return result

        try:
            if self.activation_modules:
                for module in self.model.modules():
                    if isinstance(module, self.activation_modules):
                        handles.append(module.register_forward_hook(module_hook))
            with mode:
                yield mode
        finally:
            for handle in handles:
                handle.remove()

    def _run(
        self,
        images: Tensor,
        gates: list[Tensor] | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        def handler(call: int, func: Any, args: Any, kwargs: Any, name: str) -> Any:
            if call >= self._num_calls or self._call_names[call] != name:
                raise RuntimeError(self._mismatch(f"call {call} is {name}"))
            site = self._site_of_call[call]
            if site is None:
                return func(*args, **kwargs)
            if gates is None:
                output = func(*args, **kwargs)
            else:
                output = self._gated_activation(site, gates[site], func, args, kwargs, name)
            if observe is not None:
                observe(site, output)
            return output

        with frozen(self.model), self._intercept(handler) as mode:
            output = self.model(images)
        if mode.calls != self._num_calls:
            raise RuntimeError(self._mismatch(f"{mode.calls} activation calls"))
        return self._logits(output)

    def _gated_activation(
        self, site: int, gate: Tensor, func: Any, args: Any, kwargs: dict[str, Any], name: str
    ) -> Tensor:
        """``gate * act(x) + (1 - gate) * baseline``, in place where the model's call is."""
        source: Tensor = args[0] if args else kwargs["input"]
        inplace = func in _INPLACE_CALLS or bool(kwargs.get("inplace", False))
        tracked = torch.is_grad_enabled() and (source.requires_grad or gate.requires_grad)
        if name in _FUSED and not (inplace and tracked):
            return self._gate(site, source, gate, activation=name, inplace=inplace)
        if not inplace:
            return self._gate(site, func(*args, **kwargs), gate)
        # Autograd needs the activation's own result intact, so that the write-back comes last.
        gated = self._gate(site, _out_of_place(func, source.clone(), args, kwargs), gate)
        return source.copy_(gated)

    def _gate(
        self,
        site: int,
        x: Tensor,
        gate: Tensor,
        activation: str = "none",
        inplace: bool = False,
    ) -> Tensor:
        baseline = None if self._baseline is None else self._baseline[site].to(x.device, x.dtype)
        per_unit = baseline if baseline is not None and baseline.dim() > 1 else None
        if baseline is not None and per_unit is not None:
            baseline = None
        view = self._channels_first(site, x)
        gate = gate.to(x.dtype) if gate.is_floating_point() else gate
        if inplace:
            ops.gated_forward_(view, gate, baseline=baseline, activation=activation)
            if per_unit is not None:
                view.add_((1 - gate.to(x.dtype)) * per_unit)
            return x
        output = ops.gated_forward(view, gate, baseline=baseline, activation=activation)
        if per_unit is not None:
            output = output + (1 - gate.to(x.dtype)) * per_unit
        return output if self.sites[site].channel_dim == 1 else output.movedim(1, -1)

    def _channels_first(self, site: int, x: Tensor) -> Tensor:
        return x if self.sites[site].channel_dim == 1 else x.movedim(-1, 1)

    def _check_gates(self, images: Tensor, gates: Sequence[Tensor] | Tensor) -> list[Tensor]:
        if isinstance(gates, Tensor):
            gates = self.sites.gates(gates)
        if len(gates) != len(self.sites):
            raise ValueError(
                f"GatedTarget.gated: gates must hold one tensor per site ({len(self.sites)}), "
                f"got {len(gates)}"
            )
        batch = images.shape[0]
        checked = []
        for i, gate in enumerate(gates):
            shape = self.sites.mask_shape(i)
            if not isinstance(gate, Tensor) or not (
                gate.is_floating_point() or gate.dtype == torch.bool
            ):
                got = gate.dtype if isinstance(gate, Tensor) else type(gate).__name__
                raise TypeError(
                    f"GatedTarget.gated: gate of site {self.sites[i].key} must be a floating or "
                    f"bool tensor, got {got}"
                )
            if tuple(gate.shape[1:]) != shape or gate.shape[0] not in (1, batch):
                wanted = ", ".join(map(str, shape))
                raise ValueError(
                    f"GatedTarget.gated: gate of site {self.sites[i].key} must be "
                    f"[{batch}, {wanted}] or [1, {wanted}], got {tuple(gate.shape)}"
                )
            if gate.device != images.device:
                raise ValueError(
                    f"GatedTarget.gated: gate of site {self.sites[i].key} and images must be on "
                    f"the same device (got gate={gate.device}, images={images.device})"
                )
            if self.sites.granularity == "unit" and gate.shape[0] != batch:
                gate = gate.expand(batch, *shape)
            checked.append(gate)
        return checked

    def _logits(self, output: Any) -> Tensor:
        logits = output if self.output_fn is None else self.output_fn(output)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"GatedTarget: the model must return logits [N, K], got {type(logits).__name__}; "
                "pass output_fn to pick them"
            )
        if logits.dim() != 2:
            raise ValueError(
                f"GatedTarget: logits must be [N, K], got shape {tuple(logits.shape)}; "
                "pass output_fn to pick them"
            )
        return logits

    def _mismatch(self, what: str) -> str:
        return (
            f"GatedTarget: the model must make the same {self._num_calls} activation calls in "
            f"every run, but in this run {what}; data-dependent control flow cannot be gated"
        )


def _out_of_place(func: Any, source: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The activation's result on ``source`` (a private copy that the call may overwrite)."""
    result: Tensor = (
        func(source, *args[1:], **kwargs) if args else func(**{**kwargs, "input": source})
    )
    return result


def _eager_module(model: Any) -> nn.Module:
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
