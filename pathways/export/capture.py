"""Capturing a target as one torch.fx graph with a marker behind the activation of every site.

Two ways lead to the same form. ``torch.fx`` keeps the model's own modules and its freedom in every
dimension; where it cannot follow (control flow on shapes), ``torch.export`` records the operations
of a run, free in the batch dimension only. Activation calls are told apart by the target's own
tables and counted in the order of its eager runs, so that all three agree on what site is which.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pathways.activations import ACTIVATIONS, INPLACE_CALLS, activation_of
from pathways.sites import Site
from pathways.target import GatedTarget

# The plain function behind other spellings: TorchScript knows no unbound method, and sites are
# computed out of place, with a write-back where the model relies on it.
_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.relu_: torch.relu,
    Tensor.relu: torch.relu,
    Tensor.relu_: torch.relu,
    F.leaky_relu_: F.leaky_relu,
    F.elu_: F.elu,
    torch.selu_: torch.selu,
    torch.celu_: torch.celu,
    torch.rrelu_: torch.rrelu,
    F.hardtanh_: F.hardtanh,
    Tensor.prelu: torch.prelu,
}
_OVERLOAD = "pathways_overload"  # key of a node's metadata


class ExportError(ValueError):
    """A target that cannot be exported; the sentence names the module and line that stopped it."""


def first_line(error: BaseException) -> str:
    """The first sentence of an error, short enough to stand inside another one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@functools.cache
def _marker_library() -> torch.library.Library:
    library = torch.library.Library("pathways_export", "FRAGMENT")  # lives as long as it is held
    library.define("site(Tensor z, int index) -> Tensor")
    library.impl("site", lambda z, index: z.clone(), "CompositeExplicitAutograd")
    return library


def site_marker() -> Any:
    """``pathways_export::site(z, index)``: marks the activation of a site in a captured graph.

    It exists between capture and rewriting only, and is registered on first use.
    """
    _marker_library()
    return torch.ops.pathways_export.site.default


class Classifier(nn.Module):
    """A target's model with its ``output_fn``: images to logits."""

    def __init__(self, target: GatedTarget) -> None:
        super().__init__()
        self.model = target.model
        self.output_fn = target.output_fn

    def forward(self, images: Tensor) -> Any:
        output = self.model(images)
        return output if self.output_fn is None else self.output_fn(output)


class _Numbering:
    """Follows the target's table of activation calls and rewrites those that are sites.

    Args:
        target (GatedTarget): the target.
        call (callable): ``call(func, args, kwargs)``: how a function is applied.
        write (callable): ``write(x, z)``: copies z into x and returns x.
    """

    def __init__(
        self,
        target: GatedTarget,
        call: Callable[[Any, Any, Any], Any],
        write: Callable[[Any, Any], Any],
    ) -> None:
        self.target = target
        self.call = call
        self.write = write
        self.count = 0

    def next_site(self, name: str) -> int | None:
        """Position of the next activation call among the sites; None if it is not one."""
        number = self.count
        self.count += 1
        if number >= self.target._num_calls or self.target._call_names[number] != name:
            raise ExportError(self.target._mismatch(f"call {number} is {name}"))
        return self.target._site_of_call[number]

    def run_site(self, site: int, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The call of a site's activation with a marker behind it, written back if in place."""
        source = args[0] if args else kwargs["input"]
        if func not in ACTIVATIONS:  # the target's identity behind one of its activation_modules
            return self.call(site_marker(), (source, site), {})
        func, args, kwargs, inplace = out_of_place(func, args, kwargs)
        z = self.call(site_marker(), (self.call(func, args, kwargs), site), {})
        return self.write(source, z) if inplace else z

    def finish(self) -> None:
        """Check that every call was seen."""
        if self.count != self.target._num_calls:
            raise ExportError(self.target._mismatch(f"{self.count} activation calls"))


def out_of_place(
    func: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any], bool]:
    """Function and arguments of the same call out of place, and whether it was in place."""
    if func in INPLACE_CALLS:
        if isinstance(func, torch._ops.OpOverload):
            name = func.overloadpacket.__name__.removesuffix("_")
            return getattr(torch.ops.aten, name).default, args, kwargs, True
        return _PLAIN[func], args, kwargs, True
    func = _PLAIN.get(func, func)
    try:
        parameters = list(inspect.signature(func).parameters)
    except ValueError:  # a built-in function: none of them takes ``inplace``
        return func, args, kwargs, False
    inplace = False
    if "inplace" in parameters:
        position = parameters.index("inplace")
        if len(args) > position:
            inplace = bool(args[position])
            args = (*args[:position], False, *args[position + 1 :])
        else:
            inplace = bool(kwargs.get("inplace", False))
            kwargs = {**kwargs, "inplace": False}
    return func, args, kwargs, inplace


def plain_activation(node: fx.Node) -> str | None:
    """Name of the activation that a node computes out of place, None for any other node."""
    if node.op != "call_function":
        return None
    name = activation_of(node.target, node.args, node.kwargs)
    if name is None or out_of_place(node.target, node.args, dict(node.kwargs))[3]:
        return None
    return name


# ---------------------------------------------------------------------- torch.fx


class _Tracer(fx.Tracer):
    """Goes into every module that makes activation calls; other torch.nn modules stay whole."""

    def __init__(self, target: GatedTarget, calls: Iterable[Site]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.target = target
        self.depth = 0
        self.mode: Any = None  # set once the target's interception has begun
        self.active = {""}
        for call in calls:
            parts = call.name.split(".")
            self.active.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
        self.names = {module: name for name, module in target.model.named_modules()}
        self.numbering = _Numbering(
            target,
            lambda func, args, kwargs: self._plain_proxy("call_function", func, args, kwargs),
            lambda x, z: self._plain_proxy("call_method", "copy_", (x, z), {}),
        )

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self.target.activation_modules) or self.names.get(m) in self.active:
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        self.depth += 1
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.depth -= 1

    def _plain_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        return super().create_proxy(kind, target, args, kwargs)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        # At depth 0 runs output_fn, whose activations are no sites in eager runs either.
        counts = self.depth > 0 and self.mode is not None and self.mode.inside == 0
        if counts and kind in ("call_function", "call_method"):
            func = getattr(Tensor, target, None) if kind == "call_method" else target
            name = activation_of(func, args, kwargs)
            site = None if name is None else self.numbering.next_site(name)
            if site is not None:
                return self.numbering.run_site(site, func, args, kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def on_activation(self, _: int, func: Any, args: Any, kwargs: Any, name: str) -> Any:
        """Calls that the target's interception sees, also those on constants, without a node."""
        source = args[0] if args else kwargs["input"]
        if func in ACTIVATIONS and isinstance(source, fx.Proxy):
            return func(*args, **kwargs)  # counted when its node is created
        site = self.numbering.next_site(name)
        if site is None:
            return func(*args, **kwargs)
        return self.numbering.run_site(site, func, args, kwargs)


def capture_by_fx(target: GatedTarget, calls: Iterable[Site]) -> fx.GraphModule:
    """Capture by symbolic tracing; the modules of the graph are the target's own, not copies.

    Args:
        target (GatedTarget): frozen (eval mode) while this runs.
        calls (iterable of Site): every activation call of a run, in order.

    Raises:
        Exception: whatever stopped torch.fx.
    """
    root = Classifier(target)
    tracer = _Tracer(target, calls)
    with target._intercept(tracer.on_activation) as tracer.mode:
        graph = tracer.trace(root)
    tracer.numbering.finish()
    return fx.GraphModule(root, graph, type(target.model).__name__)


# ---------------------------------------------------------------------- torch.export


class _Marked(nn.Module):
    """Runs the target under its own interception, with markers."""

    def __init__(self, target: GatedTarget) -> None:
        super().__init__()
        self.classifier = Classifier(target)
        self.target = target

    def forward(self, images: Tensor) -> Any:
        numbering = _Numbering(
            self.target,
            lambda func, args, kwargs: func(*args, **kwargs),
            lambda x, z: x.copy_(z),
        )

        def handler(_: int, func: Any, args: Any, kwargs: Any, name: str) -> Any:
            site = numbering.next_site(name)
            if site is None:
                return func(*args, **kwargs)
            return numbering.run_site(site, func, args, kwargs)

        with self.target._intercept(handler):
            logits = self.classifier(images)
        numbering.finish()
        return logits


def capture_by_export(target: GatedTarget, example: Tensor) -> fx.GraphModule:
    """Capture by ``torch.export`` with a dynamic batch dimension, in terms TorchScript knows.

    Args:
        target (GatedTarget): frozen (eval mode) while this runs.
        example (Tensor[N, ...]): an input of two rows or more; one would be taken for a constant.

    Raises:
        Exception: whatever stopped torch.export.
    """
    program = torch.export.export(
        _Marked(target),
        (example,),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        strict=False,
    )
    # Unlike the program's own graph, its module has parameters as attributes again.
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    (output,) = [node for node in graph.nodes if node.op == "output"]
    if isinstance(output.args[0], tuple):
        output.args = (output.args[0][0],)
    return fx.GraphModule(module, graph, type(target.model).__name__)


# ---------------------------------------------------------------------- terms of TorchScript


def make_scriptable(graph: fx.Graph) -> None:
    """Spell a captured graph as TorchScript does, in place.

    Checks that the graph cannot violate any more are dropped; annotations are, too: fx prints some
    under names that TorchScript does not know.
    """
    images = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        node.type = None
        if _is_check(node):
            graph.erase_node(node)
        elif node.op == "call_function":
            _spell(graph, node, images)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _is_check(node: fx.Node) -> bool:
    if node.op == "call_module":  # torch.export keeps its own checks of the inputs in such a module
        return str(node.target).rpartition(".")[2] == "_guards_fn"
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name.startswith(("_assert", "sym_constrain"))


def restore_overloads(module: nn.Module) -> None:
    """Undo in place what :func:`make_scriptable` spelled for TorchScript alone.

    Called without its overload, an operation without a tensor argument would take a free size for
    the one at hand.
    """
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.target = node.meta.pop(_OVERLOAD, node.target)
            part.recompile()


def _spell(graph: fx.Graph, node: fx.Node, images: fx.Node) -> None:
    # Markers are still to be rewritten.
    if isinstance(node.target, torch._ops.OpOverload) and node.target is not site_marker():
        node.meta[_OVERLOAD] = node.target
    if node.target is torch.ops.aten.sym_size.int:
        node.target = torch.ops.aten.size
    elif isinstance(node.target, torch._ops.OpOverload):
        node.target = node.target.overloadpacket  # TorchScript chooses overloads itself

    def follow(argument: Any) -> Any:
        if not isinstance(argument, torch.device):
            return argument
        # A device that was written down while capturing must follow the images instead.
        with graph.inserting_before(node):
            return graph.call_function(getattr, (images, "device"))

    node.args = fx.node.map_aggregate(node.args, follow)
    node.kwargs = fx.node.map_aggregate(node.kwargs, follow)
