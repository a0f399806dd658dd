"""Rewriting a target's graph so that it runs clean and gated, in Python and in TorchScript."""

from __future__ import annotations

import copy
import linecache
import operator
import os
import re
import traceback
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pathways import activations
from pathways import target as target_module
from pathways.activations import FUSED
from pathways.export.capture import (
    ExportError,
    capture_by_export,
    capture_by_fx,
    first_line,
    make_scriptable,
    plain_activation,
    site_marker,
)
from pathways.export.graph import GatedGraph
from pathways.export.runtime import run_site
from pathways.freezing import frozen
from pathways.target import GatedTarget

# Modules and functions whose result nobody else has a reference to.
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.Linear,
    nn.GroupNorm,
    nn.LayerNorm,
)
_FRESH_FUNCTIONS = frozenset(
    {
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.linear,
        F.batch_norm,
        F.group_norm,
        F.layer_norm,
        torch.add,
        torch.cat,
        torch.clone,
        operator.add,
        torch.ops.aten.conv1d,
        torch.ops.aten.conv2d,
        torch.ops.aten.conv3d,
        torch.ops.aten.linear,
        torch.ops.aten.batch_norm,
        torch.ops.aten.group_norm,
        torch.ops.aten.layer_norm,
        torch.ops.aten.add,
        torch.ops.aten.cat,
    }
)
_INTO_FIRST_FUNCTIONS = frozenset({operator.iadd, torch.ops.aten.add_})
_INTO_FIRST_METHODS = frozenset({"add_"})
_INTERNAL = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.path.abspath(activations.__file__),
    os.path.abspath(target_module.__file__),
)


def gated_graph(target: GatedTarget) -> GatedGraph:
    """A copy of a target's model that scripts, with the sites gated inside the graph.

    Tried by torch.fx first, then by torch.export; what either gives is scripted and run against the
    target before it is believed.

    Args:
        target (GatedTarget): left as it was found.

    Raises:
        ExportError: neither works; the sentence names the module and the line that stopped each.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> graph = gated_graph(target)
        >>> x = torch.randn(5, 4)
        >>> torch.equal(graph.gated(x, [torch.ones(5, 8)]), target(x)), graph.captured_by
        (True, 'torch.fx')
    """
    example = _example(target, 2)  # torch.export takes a batch of one for a constant
    reasons = []
    with frozen(target.model):
        calls = [site for site, _ in target._discover(example, target.sites.granularity)[0]]
        for way in ("torch.fx", "torch.export"):
            try:
                captured = (
                    capture_by_fx(target, calls)
                    if way == "torch.fx"
                    else capture_by_export(target, example)
                )
            except Exception as error:
                reasons.append(f"{way} stopped {_where(error, target.model)}: {first_line(error)}")
                continue
            graph = GatedGraph(_rewrite(captured, target), way).eval()
            problem = _scripting_problem(graph) or _difference(graph, target)
            if problem is None:
                return graph
            reasons.append(f"{way} gave a graph that {problem}")
    kind = type(target.model).__name__
    raise ExportError(f"export: {kind} cannot be rewritten as a graph: {'; '.join(reasons)}")


def _example(target: GatedTarget, count: int) -> Tensor:
    """Random images of the shape and dtype the model takes."""
    dtypes = [p.dtype for p in target.model.parameters() if p.is_floating_point()]
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, *target.example_shape, generator=random)
    return images.to(target.device, dtypes[0] if dtypes else torch.float32)


# ---------------------------------------------------------------------- passes


def _rewrite(captured: fx.GraphModule, target: GatedTarget) -> fx.GraphModule:
    """Put :func:`run_site` where the markers are; the result shares nothing with the target."""
    graph = captured.graph
    (images,) = [node for node in graph.nodes if node.op == "placeholder"]
    markers = [node for node in graph.nodes if node.target is site_marker()]
    for marker in markers:
        _settle_write_back(captured, marker)
    calls = []
    for marker in markers:
        source, index = marker.args
        activation, reuse = plain_activation(source), False
        if activation in FUSED:
            fused = source
            source = fused.args[0] if fused.args else fused.kwargs["input"]
            marker.replace_input_with(fused, source)
            graph.erase_node(fused)
            reuse = _is_owned(captured, source, {marker})
        elif activation is not None:
            activation, reuse = "none", set(source.users) == {marker}
        calls.append((marker, source, index, activation or "none", reuse))
    make_scriptable(graph)
    if target._overwrites_input:
        # The gated run comes after the clean one and must see the same images.
        with graph.inserting_after(images):
            own = graph.call_function(torch.clone, (images,))
        images.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    inputs: list[fx.Node] = []
    for name, kind in (
        ("gates", list[Tensor]),
        ("features", list[Tensor]),
        ("gated", bool),
        ("record", bool),
        ("pool", int),
        ("probe", int),
    ):
        with graph.inserting_after(inputs[-1] if inputs else images):
            inputs.append(graph.placeholder(name, type_expr=kind))
    for marker, source, index, activation, reuse in calls:
        baseline = None
        if target.baseline is not None:
            name = f"baseline_{index}"
            captured.register_buffer(name, target.baseline[index].to(target.device))
            with graph.inserting_before(marker):
                baseline = graph.get_attr(name)
        marker.target = run_site
        marker.args = (
            source,
            *inputs,
            index,
            activation,
            target.sites[index].channel_dim,
            reuse,
            index in target._overwritten,
            baseline,
        )
    graph.lint()
    captured.delete_all_unused_submodules()
    captured.recompile()
    return copy.deepcopy(captured).cpu()


def _settle_write_back(captured: fx.GraphModule, marker: Any) -> None:
    """Drop the write-back of an activation in place if nothing else can see what it writes into.

    Where it stays, the activation is computed on a copy, because autograd needs what the write-back
    overwrites.
    """
    if len(marker.users) != 1:
        return
    (copy_back,) = marker.users
    writes = copy_back.target in ("copy_", torch.ops.aten.copy_.default)
    if not writes or copy_back.args[1] is not marker:
        return
    z, source = marker.args[0], copy_back.args[0]
    if _is_owned(captured, source, {z, copy_back}):
        copy_back.replace_all_uses_with(marker)
        captured.graph.erase_node(copy_back)
    else:
        with captured.graph.inserting_before(z):
            z.replace_input_with(source, captured.graph.call_function(torch.clone, (source,)))


def _is_owned(captured: fx.GraphModule, node: Any, users: set[Any]) -> bool:
    """Whether only ``users`` can see the memory of a node's result."""
    if not isinstance(node, fx.Node) or not set(node.users) <= users:
        return False
    if node.op == "call_module":
        return isinstance(captured.get_submodule(str(node.target)), _FRESH_MODULES)
    function = node.target
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    if node.op == "call_method":
        return function in _INTO_FIRST_METHODS and _is_owned(captured, node.args[0], {node})
    if node.op == "call_function" and function in _INTO_FIRST_FUNCTIONS:
        return _is_owned(captured, node.args[0], {node})
    return node.op == "call_function" and function in _FRESH_FUNCTIONS


# ---------------------------------------------------------------------- checks


def _scripting_problem(graph: GatedGraph) -> str | None:
    try:
        torch.jit.script(graph)
    except Exception as error:  # torch.jit raises many kinds
        where = _where_scripting_stopped(error, graph)
        return f"TorchScript does not take{where}: {first_line(error)}"
    return None


def _difference(graph: GatedGraph, target: GatedTarget) -> str | None:
    """How the graph differs from the target on a batch of a size it was not captured with."""
    images = _example(target, 3)
    flat = torch.rand(3, target.sites.num_neurons, generator=torch.Generator().manual_seed(1))
    gates = target.sites.gates(flat.round().to(images.dtype))
    try:
        found = [graph(images.cpu()), graph.gated(images.cpu(), gates)]
    except Exception as error:
        return f"fails on another batch size: {first_line(error)}"
    with torch.no_grad():
        wanted = [
            target(images),
            target.gated(images, [gate.to(images.device) for gate in gates]),
        ]
    for run, one, other in zip(("clean", "gated"), found, wanted, strict=True):
        if not torch.allclose(one, other.cpu(), rtol=1e-3, atol=1e-4, equal_nan=True):
            worst = (one - other.cpu()).abs().max().item()
            return f"gives other {run} logits than the model (largest difference {worst:.3g})"
    return None


# ---------------------------------------------------------------------- reasons


def _where(error: BaseException, model: nn.Module) -> str:
    """``in module 'a.b' (Gate) at net.py:12 `if x.sum() > 0:` `` from an error's traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    module, own_line, user_line = None, None, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        filename = frame.f_code.co_filename
        if isinstance(owner, nn.Module) and id(owner) in names:
            module, own_line = owner, (filename, line)
        if module is not None and not filename.startswith(_INTERNAL):
            user_line = (filename, line)
    if module is None:
        return f"in {type(model).__name__}"
    filename, line = user_line or own_line or ("?", 0)
    return f"in {_described(names[id(module)], module)} at {_line(filename, line)}"


def _where_scripting_stopped(error: BaseException, graph: GatedGraph) -> str:
    """The line of the model behind the line of generated code at which TorchScript stopped."""
    captured = graph.graph
    assert isinstance(captured, fx.GraphModule)
    nodes = {node.name: node for node in captured.graph.nodes}
    for name in re.findall(r"^ *(\w+) = .*\n *~.*<--- HERE", str(error), flags=re.MULTILINE):
        trace = getattr(nodes.get(name), "stack_trace", None) or ""
        for filename, line in reversed(re.findall(r'File "(.+?)", line (\d+)', trace)):
            if not filename.startswith(_INTERNAL):
                return f" {_line(filename, int(line))}"
    return ""


def _described(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"module {name!r} ({kind})" if name else f"the model itself ({kind})"


def _line(filename: str, line: int) -> str:
    source = linecache.getline(filename, line).strip()
    return f"{os.path.basename(filename)}:{line}" + (f" `{source}`" if source else "")
