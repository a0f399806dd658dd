"""GatedTarget: a frozen classifier whose activations can be recorded and gated."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathways import ops
from pathways.activations import (
    ACTIVATIONS,
    FUSED,
    INPLACE_CALLS,
    TOKEN_MARK,
    ActivationCalls,
    origins_of_activations,
    out_of_place,
)
from pathways.freezing import eager_module, frozen, in_checkpoint
from pathways.sites import Selector, Site, Sites


class NoGradientError(RuntimeError):
    """The model runs a site in a way that lets no gradient reach its gate."""


class GatedTarget:
    """A classifier to explain: clean runs, recorded feature maps, and gated runs.

    A site is one call of an activation function (ReLU, ReLU6 and Hardtanh from 0, SiLU, GELU,
    Hardswish, LeakyReLU, RReLU, PReLU, ELU, SELU, CELU, Mish), made by a module, directly, or in
    the graph of a ``torch.export`` program, in place or not; a reused module has one site per call.
    In a gated run the activation z of a site becomes ``gate * z + (1 - gate) * baseline``. With
    all-ones gates the logits are the clean logits bit for bit. The model is run in eval mode with
    frozen parameters, without PyTorch's fused transformer layers, and left as it was found (modes,
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
        ValueError: no activation found, the selector matches nothing, or lazy parameters.
        RuntimeError: a run's activations differ from those found with ``example_input``, or no
            gradient can reach a gate (``NoGradientError``).

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
        self.model = eager_module(model)
        self.output_fn = output_fn
        self.activation_modules = tuple(activation_modules)
        if not isinstance(example_input, Tensor) or example_input.dim() < 1:
            raise TypeError(
                "GatedTarget: example_input must be a batched tensor, "
                f"got {type(example_input).__name__}"
            )
        self.example_shape: tuple[int, ...] = tuple(example_input.shape[1:])
        self.example_floating = example_input.is_floating_point()
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
        # For what happens at every call: what else runs there is arithmetic of microseconds.
        self._channels = [site.channels for site in self.sites]
        self._channel_dims = [site.channel_dim for site in self.sites]
        self._overwritten: set[int] = set()
        self._overwrites_input = False
        self._find_overwritten(example_input)
        self._baseline: list[Tensor] | None = None
        self.baseline = baseline

    # ------------------------------------------------------------------ public

    def __call__(self, images: Tensor) -> Tensor:
        """Clean logits ``[N, K]``, without gradient."""
        # Intercepted like every other run: PyTorch's fused transformer layers, which it takes only
        # where nothing is intercepted, round differently.
        with torch.no_grad():
            return self._run(images)

    def features(
        self, images: Tensor, *, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Clean logits ``[N, K]`` and every site's activation ``[N, C, *space]``, detached.

        Args:
            images (Tensor[N, ...]): inputs.
            reduce (callable or None): called with each activation as soon as it is there; only its
                result is kept.
        """
        records: list[Tensor | None] = [None] * len(self.sites)

        def record(site: int, output: Tensor) -> None:
            # A later in-place call may write into this activation; only then is a copy needed.
            kept = output.clone() if site in self._overwritten else output
            kept = self._channels_first(site, kept)
            records[site] = kept if reduce is None else reduce(kept)

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
            if not isinstance(values, list | tuple) or len(values) != len(self.sites):
                got = len(values) if isinstance(values, list | tuple) else type(values).__name__
                raise ValueError(
                    f"GatedTarget: baseline must be a list of one tensor per site "
                    f"({len(self.sites)}), got {got}"
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
        """SHA-256 (hex) of parameters, buffers, sites and baseline; files are checked by it."""
        digest = hashlib.sha256(json.dumps(self.sites.to_json(), sort_keys=True).encode())
        state = self.model.state_dict()
        if self._baseline is not None:
            # A pathway found with other replacement values is another pathway.
            state |= {f"baseline {i}": value for i, value in enumerate(self._baseline)}
        for name, tensor in sorted(state.items()):
            if not isinstance(tensor, Tensor):
                continue  # a module's extra state: any object, without a stable form
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter or buffer; the CPU for a model without any."""
        return device_of(self.model)

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
        # The calls of a traced graph come from no module of their own, but each remembers one.
        traced = {
            name: itertools.cycle(origins_of_activations(module, name))
            for name, module in self.model.named_modules()
            if isinstance(module, fx.GraphModule)
        }

        def handler(call: int, func: Any, args: Any, kwargs: Any, name: str) -> Tensor:
            source = args[0] if args else kwargs["input"]
            token = getattr(source, TOKEN_MARK, False)
            output = func(*args, **kwargs)
            batched = output.dim() >= 2 and output.shape[0] == batch
            if token:
                setattr(output, TOKEN_MARK, True)
            path = next(traced.get(stack[-1], iter(())), stack[-1])
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
        intercept = self._intercept(handler, mark_tokens=True)
        with torch.no_grad(), frozen(self.model), intercept:
            try:
                # After the hooks of activation modules, which must still see their own path.
                for module in self.model.modules():
                    handles.append(module.register_forward_pre_hook(enter))
                    handles.append(module.register_forward_hook(leave, always_call=True))
                output = self.model(example_input.clone())
            finally:
                for handle in handles:
                    handle.remove()
        logits = self._logits(output)
        return found, logits

    def _find_overwritten(self, example_input: Tensor) -> None:
        """Note the sites whose activation is written into later, and whether the input is."""
        versions: dict[int, tuple[Tensor, int]] = {}

        def record(site: int, output: Tensor) -> None:
            versions[site] = (output, output._version)

        # Tensors of inference mode have no version counter to see in-place calls by.
        with torch.inference_mode(False), torch.no_grad():
            images = example_input.clone()
            version = images._version
            self._run(images, observe=record)
        self._overwrites_input = images._version != version
        self._overwritten = {
            site for site, (output, version) in versions.items() if output._version != version
        }

    # ------------------------------------------------------------------ running

    @contextmanager
    def _intercept(
        self, handler: Callable[..., Any], mark_tokens: bool = False
    ) -> Iterator[ActivationCalls]:
        """Route every activation call, by function or by ``activation_modules``, to ``handler``."""
        mode = ActivationCalls(handler, mark_tokens)
        handles = []

        def enter(module: nn.Module, _: Any) -> None:
            mode.inside += 1

        def leave(module: nn.Module, _: Any, output: Any) -> Any:
            mode.inside -= 1
            if mode.inside > 0:
                return output
            name = type(module).__name__
            if not isinstance(output, Tensor | fx.Proxy):  # a proxy while torch.fx traces
                raise TypeError(
                    f"GatedTarget: activation_modules must return tensors, {name} returned "
                    f"{type(output).__name__}"
                )
            call = mode.calls
            mode.calls += 1
            return handler(call, lambda x: x, (output,), {}, name.lower())

        try:
            if self.activation_modules:
                for module in self.model.modules():
                    if isinstance(module, self.activation_modules):
                        handles.append(module.register_forward_pre_hook(enter))
                        handles.append(module.register_forward_hook(leave))
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
            shape = (args[0] if args else kwargs["input"]).shape
            channels = self._channels[site]
            if shape[0] != batch or shape[self._channel_dims[site]] != channels:
                raise RuntimeError(
                    self._mismatch(
                        f"site {self.sites[site].key} has {tuple(shape)} activations, not "
                        f"{channels} channels of {batch} inputs"
                    )
                )
            if gates is None:
                output = func(*args, **kwargs)
                if observe is not None:
                    observe(site, output)
                return output
            if recording and (not torch.is_grad_enabled() or in_checkpoint()):
                raise NoGradientError(
                    f"GatedTarget: no gradient can reach the gate of site {self.sites[site].key}, "
                    "the model runs it under torch.no_grad or with gradient checkpointing, which "
                    "would run it again without its gate; switch that off in the model"
                )
            return self._gated_activation(site, gates[site], func, args, kwargs, name, observe)

        self._check_images(images)
        batch = images.shape[0]
        recording = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (images, *(gates or ()))
        )
        with frozen(self.model), self._intercept(handler) as mode:
            output = self.model(images.clone() if self._overwrites_input else images)
        if mode.calls != self._num_calls:
            raise RuntimeError(self._mismatch(f"{mode.calls} activation calls"))
        return self._logits(output)

    def _gated_activation(
        self,
        site: int,
        gate: Tensor,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        name: str,
        observe: Callable[[int, Tensor], None] | None,
    ) -> Tensor:
        """``gate * act(x) + (1 - gate) * baseline``, in place where the model's call is."""
        source: Tensor = args[0] if args else kwargs["input"]
        inplace = func in INPLACE_CALLS or bool(kwargs.get("inplace", False))
        tracked = torch.is_grad_enabled() and (source.requires_grad or gate.requires_grad)
        fused = name in FUSED and func in ACTIVATIONS  # not a module that happens to be named so
        # What an observer holds must not be what the model writes into afterwards.
        apart = observe is not None and site in self._overwritten
        into_source = inplace and fused and not tracked and not apart
        if into_source or (fused and not inplace):
            gated = self._gate(site, source, gate, activation=name, inplace=into_source)
        elif inplace:
            # Autograd needs the activation's own result intact, so that the write-back comes last.
            gated = self._gate(site, out_of_place(func, source.clone(), args, kwargs), gate)
        else:
            gated = self._gate(site, func(*args, **kwargs), gate)
        if observe is not None:
            observe(site, gated)
        if inplace and not into_source:
            return source.copy_(gated)
        return gated.clone() if apart else gated

    def _gate(
        self,
        site: int,
        x: Tensor,
        gate: Tensor,
        activation: str = "none",
        inplace: bool = False,
    ) -> Tensor:
        baseline = per_unit = None
        if self._baseline is not None:
            value = self._baseline[site].to(x.device, x.dtype)
            baseline, per_unit = (None, value) if value.dim() > 1 else (value, None)
        view = self._channels_first(site, x)
        if gate.dtype != x.dtype and gate.is_floating_point():
            gate = gate.to(x.dtype)
        if inplace:
            ops.gated_forward_(view, gate, baseline=baseline, activation=activation)
            if per_unit is not None:
                view.add_((1 - gate.to(x.dtype)) * per_unit)
            return x
        output = ops.gated_forward(view, gate, baseline=baseline, activation=activation)
        if per_unit is not None:
            output = output + (1 - gate.to(x.dtype)) * per_unit
        return output if self._channel_dims[site] == 1 else output.movedim(1, -1)

    def _channels_first(self, site: int, x: Tensor) -> Tensor:
        return x if self._channel_dims[site] == 1 else x.movedim(-1, 1)

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dim() == 0:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"GatedTarget: images must be a batched tensor, got {got}")
        if self.example_floating and not images.is_floating_point():
            raise TypeError(
                f"GatedTarget: images must be floating point like example_input, got {images.dtype}"
            )
        if images.dim() != len(self.example_shape) + 1:
            raise ValueError(
                f"GatedTarget: images must have {len(self.example_shape) + 1} dimensions like "
                f"example_input, got {tuple(images.shape)}"
            )
        if self.sites.granularity == "unit" and tuple(images.shape[1:]) != self.example_shape:
            wanted = ", ".join(map(str, self.example_shape))
            raise ValueError(
                f"GatedTarget: with unit granularity images must be [N, {wanted}] like "
                f"example_input, got {tuple(images.shape)}"
            )

    def _check_gates(self, images: Tensor, gates: Sequence[Tensor] | Tensor) -> list[Tensor]:
        self._check_images(images)
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


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter or buffer; the CPU for one without any."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")
