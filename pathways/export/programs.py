"""The methods of a scripted explainer as exported programs, gradients included.

``torch.export`` does not follow ``torch.autograd.grad``, and the compiled ops' gradients are of no
use where there is no autograd. So every method is first traced below autograd, where the backward
pass is a list of operations like any other; the trace is what is exported. Gated runs are traced as
plain tensor operations, which a compiler fuses with the normalisation and activation around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathways.export.capture import ExportError, first_line, restore_overloads
from pathways.export.scripted import ScriptedExplainer
from pathways.preprocessing import Preprocessing

# Batch size that programs are traced with: dimensions of the same size could be taken for it.
_BATCH = 11


@dataclass
class Argument:
    """A tensor that a program takes or returns.

    Args:
        name (str): what it is.
        dtype (dtype): its element type.
        shape (list of int or None): None is free; the batch always is.
    """

    name: str
    dtype: torch.dtype
    shape: list[int | None]

    def to_json(self) -> dict[str, Any]:
        """``name``, ``dtype`` (``"float32"``) and ``shape`` (null where free)."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": dtype, "shape": self.shape}


@dataclass
class Program:
    """A traced method.

    Args:
        inputs, outputs (list of Argument): in order.
        graph (GraphModule): the method; its constants are attributes named as in the explainer.
        example (tuple of Tensor): arguments it was traced with.
        constants (dict of Tensor): constants by name.
        reference (callable): the method itself, on the same arguments.
    """

    inputs: list[Argument]
    outputs: list[Argument]
    graph: fx.GraphModule
    example: tuple[Tensor, ...]
    constants: dict[str, Tensor]
    reference: Callable[..., Any]


class _Method(nn.Module):
    """One method as a module."""

    def __init__(self, explainer: ScriptedExplainer, run: Callable[..., Any]) -> None:
        super().__init__()
        self.explainer = explainer
        self.run = run

    def forward(self, *arguments: Tensor) -> Any:
        return self.run(self.explainer, *arguments)


def _preprocess(explainer: ScriptedExplainer, images: Tensor) -> Tensor:
    x: Tensor = explainer.preprocessing(images)
    return x


def _importance(explainer: ScriptedExplainer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, importance = explainer.importance_of(x)
    return logits, importance, explainer.pack(explainer.generator.masks(importance))


def _gated(explainer: ScriptedExplainer, x: Tensor, words: Tensor) -> Tensor:
    return explainer.target.gated_with_gradient(x, explainer.gates_of(words))[0]


def _pathway_gradient(
    explainer: ScriptedExplainer, x: Tensor, classes: Tensor, words: Tensor
) -> Tensor:
    return explainer.gradient_of(x, explainer.gates_of(words), classes)


def _grad_cam(explainer: ScriptedExplainer, x: Tensor, classes: Tensor, words: Tensor) -> Tensor:
    return explainer.cam_of(x, explainer.gates_of(words), classes, explainer.cam_site)


def trace_programs(explainer: ScriptedExplainer) -> dict[str, Program]:
    """Trace everything that a compiled explainer is made of; the batch size stays free.

    Args:
        explainer (ScriptedExplainer): it runs as before, but can no longer be scripted.

    Returns:
        dict of Program: ``preprocess`` (with a preprocessing), ``importance``, ``gated``,
        ``pathway_gradient`` and ``grad_cam`` (with a site that has a map).

    Raises:
        ExportError: a method that cannot be traced for every batch size, or a preprocessing that
            does not take images of a kind that can be told.
    """
    restore_overloads(explainer)
    programs: dict[str, Program] = {}
    shape = list(explainer.input_shape)
    if not isinstance(explainer.preprocessing, nn.Identity):
        programs["preprocess"] = trace_preprocessing(explainer)
        sides = programs["preprocess"].outputs[0].shape[1:]
        shape = [side for side in sides if side is not None]
    width = explainer.word_offsets[-1]
    inputs = Argument("inputs", _dtype(explainer), [None, *shape])
    classes = Argument("classes", torch.int64, [None])
    words = Argument("words", torch.int64, [None, width])
    methods: list[tuple[str, Callable[..., Any], list[Argument], list[str]]] = [
        ("importance", _importance, [inputs], ["logits", "importance", "words"]),
        ("gated", _gated, [inputs, words], ["gated_logits"]),
        ("pathway_gradient", _pathway_gradient, [inputs, classes, words], ["gradient"]),
    ]
    if explainer.cam_site >= 0:
        methods.append(("grad_cam", _grad_cam, [inputs, classes, words], ["map"]))
    for name, run, arguments, results in methods:
        try:
            programs[name] = _trace(explainer, name, run, arguments, results)[0]
        except Exception as error:  # torch raises many kinds
            raise ExportError(
                f"export: {name} cannot be traced for every batch size: {first_line(error)}"
            ) from error
    return programs


def trace_preprocessing(explainer: ScriptedExplainer) -> Program:
    """The preprocessing, for images of any size if the model sees no difference, else of its own.

    Args:
        explainer (ScriptedExplainer): one with a preprocessing.

    Raises:
        ExportError: it does not take such images.
    """
    module, wanted = explainer.preprocessing, explainer.input_shape
    kind = type(module).__name__
    known = isinstance(module, Preprocessing)
    fixed = Argument("images", torch.float32 if known else _dtype(explainer), [None, *wanted])
    if len(wanted) == 3:
        free = Argument("images", fixed.dtype, [None, wanted[0], None, None])
        try:
            program, guarded = _trace(explainer, "preprocess", _preprocess, [free], ["inputs"])
            # Ours branches on the size only to leave alone what resizing would not change.
            if (known or not guarded) and None not in program.outputs[0].shape[1:]:
                return program
        except Exception:  # what stopped it does not matter if images of one size work
            pass
    try:
        program = _trace(explainer, "preprocess", _preprocess, [fixed], ["inputs"])[0]
    except Exception as error:
        raise ExportError(
            f"export: preprocessing {kind} must take {fixed.to_json()['dtype']} images of shape "
            f"{wanted}, like model inputs: {first_line(error)}"
        ) from error
    if program.outputs[0].shape[1:] != wanted:
        raise ExportError(
            f"export: preprocessing {kind} must make model inputs of shape {wanted} from images "
            f"of that shape, got {program.outputs[0].shape[1:]}"
        )
    return program


def _trace(
    explainer: ScriptedExplainer,
    name: str,
    run: Callable[..., Any],
    inputs: list[Argument],
    results: list[str],
) -> tuple[Program, bool]:
    """A method as a program, and whether it depends on the free sizes by more than their value."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    method = _Method(explainer, run).eval()
    state = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    # Plain row-major tensors: that is how they are stored.
    state = {name: value.detach().contiguous() for name, value in state.items()}
    example = tuple(_example(argument) for argument in inputs)
    # Not make_fx's own symbols: it would free every dimension, and take equal ones for one.
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fake = []
    for i, (value, argument) in enumerate(zip(example, inputs, strict=True)):
        sizes = [DimDynamic.STATIC if side else DimDynamic.DUCK for side in argument.shape]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        source = ConstantSource(f"input_{i}")
        fake.append(mode.from_tensor(value, symbolic_context=context, source=source))
    constants = [mode.from_tensor(value, static_shapes=True) for value in state.values()]

    def call(values: list[Tensor], *arguments: Tensor) -> Any:
        named = dict(zip(state, values, strict=True))
        return torch.func.functional_call(method, named, arguments)

    with torch.no_grad():
        traced = make_fx(call, tracing_mode="symbolic")(constants, *fake)
    guarded = len(shapes.guards) > 0
    graph, used = _with_constants(traced, state, name)
    batch = torch.export.Dim("batch")
    dims = tuple(
        {
            i: batch if i == 0 else torch.export.Dim.DYNAMIC
            for i, side in enumerate(argument.shape)
            if side is None
        }
        for argument in inputs
    )
    program = torch.export.export(graph, example, dynamic_shapes=dims, strict=False)
    found = [node.meta["val"] for node in program.graph.output_node().args[0]]
    outputs = [
        Argument(name, value.dtype, [None, *(_fixed(side) for side in value.shape[1:])])
        for name, value in zip(results, found, strict=True)
    ]
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return Program(inputs, outputs, module, example, used, partial(run, explainer)), guarded


def _dtype(explainer: ScriptedExplainer) -> torch.dtype:
    dtypes = [p.dtype for p in explainer.target.parameters() if p.is_floating_point()]
    return dtypes[0] if dtypes else torch.float32


def _example(argument: Argument) -> Tensor:
    """Zeros; free sizes differ from one another and from what models use."""
    sides = iter((_BATCH, 67, 71))
    shape = [next(sides) if side is None else side for side in argument.shape]
    return torch.zeros(shape, dtype=argument.dtype)


def _fixed(side: int | torch.SymInt) -> int | None:
    return side if isinstance(side, int) else None


def _with_constants(
    traced: fx.GraphModule, state: dict[str, Tensor], method: str
) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """The traced graph with the state it uses as attributes instead of inputs."""
    graph = traced.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    root = nn.Module()
    used: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> str:
        used[name] = value
        parent, _, leaf = name.rpartition(".")
        owner = root
        for part in parent.split(".") if parent else []:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(leaf, value)
        return name

    for node in graph.nodes:
        if node.op == "get_attr":  # tensors that the method itself makes of numbers
            value = getattr(traced, node.target)
            node.target = keep(f"made.{method}.{len(used)}", value.detach())
    for node, (name, value) in zip(placeholders, state.items(), strict=False):
        if node.users:
            with graph.inserting_after(placeholders[-1]):
                target = keep(name.removeprefix("explainer."), value)
                constant = graph.create_node("get_attr", target)
            node.replace_all_uses_with(constant)
        graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(root, graph), used
