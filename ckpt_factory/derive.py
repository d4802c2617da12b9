"""derive_symmetry: the permutations of a user's module, found by following its channels through the graph.

Every axis of every parameter is a variable. A layer joins those that one permutation would have to move
together: a Linear's columns with the axis that its input carries, its bias with its rows. What is understood
of no rule is pinned: it may not be permuted. What is left is a symmetry; it is tried on numbers before it is
returned, so that a wrong rule here cannot become a wrong zoo.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from .spec import ParamSpec
from .symmetry import Symmetry

Shape = tuple[int, ...]
Axes = dict[int, Any]
"""Axis of a tensor -> the variable of the permutation that it carries; axes that carry none are left out."""

TRIALS = 4
"""Random networks that a derived symmetry is tried on."""
TOLERANCE = 1e-6
"""Of their outputs in float64, relative to the largest: a wrong permutation changes them by about 1."""

ELEMENTWISE_MODULES = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Tanh,
        nn.Sigmoid,
    ),
    *(nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink),
    *(nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.Softmax, nn.LogSoftmax, nn.Identity, nn.Dropout),
)
SPATIAL = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 3),
}
"""Layers that mix the last so many axes."""
POOLINGS = {
    f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)
}
"""The same of functions."""
ELEMENTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid"),
    *("softplus", "softsign", "logsigmoid", "hardtanh", "hardswish", "hardsigmoid", "softmax", "log_softmax"),
    *("exp", "log", "sin", "cos", "abs", "neg", "square", "sqrt", "rsqrt", "pow", "clamp", "float", "double"),
    *("to", "clone", "contiguous", "detach", "add", "sub", "mul", "truediv", "div", "maximum", "minimum"),
    *("iadd", "isub", "imul", "itruediv"),
}
"""Functions, methods and operators, by name, that act on each element or alike on all along an axis."""
RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
QUESTIONS = {"getattr", "size", "dim", "numel"}
"""What a forward asks of a tensor besides its numbers."""


class Derivation(NamedTuple):
    """What is known of a module's symmetry."""

    symmetry: Symmetry
    notes: tuple[str, ...]
    """What keeps hidden units from being permuted, if anything, one line each."""


def derive_symmetry(module: nn.Module, x: Tensor) -> Derivation:
    """The permutations of hidden units that leave a module's function as it is.

    Linear, Conv1d to 3d, GroupNorm, LayerNorm, elementwise activations, PReLU, pooling, sums of branches,
    global averages, and flattening where it moves no channel are followed, in nn.Sequential as in a forward
    that torch.fx can trace; anything else fixes the units that reach it. A flatten that lays the pixels of
    several channels in one axis does too: average over the pixels instead.

    Args:
        module: any module, in whatever state; it is not changed.
        x: examples of its input, (N, ...).

    Returns:
        The symmetry, without permutations where none can be derived, and notes saying what stood against it.
    """
    spec = ParamSpec.of_module(module)
    none = Symmetry(
        spec, {name: (None,) * len(shape) for name, shape in zip(spec.names, spec.shapes, strict=True)}
    )
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Derivation(none, ())  # one layer has no hidden units
    module, x = copy.deepcopy(module).cpu().eval(), x[:3].detach().cpu()
    try:
        traced = fx.symbolic_trace(module)
        graph, shapes = traced.graph, _Shapes(traced)
        with torch.no_grad():
            shapes.run(x)
    except Exception as error:  # whatever a forward does to a tracer
        why = " ".join(str(error).split())[:120]
        return Derivation(none, (f"torch.fx cannot trace its forward ({type(error).__name__}: {why})",))
    outputs = _follow(module, graph, shapes.of, ()).at_output
    rules = _follow(module, graph, shapes.of, outputs)  # what fixes them too is nothing to be noted
    symmetry = Symmetry(spec, rules.axes_to_perm(spec))
    try:
        holds = not symmetry.sizes or _holds(module, symmetry, x)
    except Exception as error:  # whatever a forward does to float64
        why = " ".join(str(error).split())[:120]
        return Derivation(none, (f"its symmetry cannot be tried in float64 ({type(error).__name__}: {why})",))
    if not holds:
        return Derivation(none, ("what its layers suggest does not hold for the function it computes",))
    return Derivation(symmetry, tuple(dict.fromkeys(rules.notes)))


class _Shapes(fx.Interpreter):
    """Runs a graph on numbers and keeps the shape of what each node gives."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.of: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.of[n] = tuple(value.shape)
        return value


def _follow(
    module: nn.Module, graph: fx.Graph, shapes: Mapping[fx.Node, Shape], outputs: Iterable[Any]
) -> "_Rules":
    """All rules applied in the order of the graph; the variables of the outputs stay, if they are known."""
    rules = _Rules(module, shapes)
    rules.join(None, *outputs)
    for node in graph.nodes:
        rules.follow(node)
    return rules


class _Rules:
    """Union-find over the axes of parameters, and which of them each tensor of the graph carries."""

    def __init__(self, module: nn.Module, shapes: Mapping[fx.Node, Shape]):
        self.module, self.shapes = module, shapes
        self.parameters = dict(module.named_parameters())
        self.parent: dict[Any, Any] = {}
        self.carried: dict[fx.Node, Axes] = {}
        self.touched: set[str] = set()
        self.at_output: list[Any] = []
        self.notes: list[str] = []

    def find(self, variable: Any) -> Any:
        while self.parent.get(variable, variable) != variable:
            variable = self.parent[variable]
        return variable

    def join(self, *variables: Any) -> None:
        """These are moved by one permutation; None is what stays where it is."""
        roots = {self.find(variable) for variable in variables}
        root = None if None in roots else next(iter(roots))
        for other in roots - {root}:
            self.parent[other] = root

    def pin(self, axes: Iterable[Any], why: str) -> None:
        free = [variable for variable in axes if self.find(variable) is not None]
        self.join(None, *free)
        if free:
            self.notes.append(why)

    def follow(self, node: fx.Node) -> None:
        inputs = [each for each in node.all_input_nodes if each in self.shapes]
        self.carried[node] = {}
        if node.op == "get_attr":
            name = str(node.target)
            self.touched.add(name)
            if name in self.parameters:  # else a constant, whose entries stay where they are
                self.carried[node] = {axis: (name, axis) for axis in range(len(self.shapes.get(node, ())))}
        elif node.op == "output":
            self.at_output = [variable for each in inputs for variable in self.carried[each].values()]
            self.join(None, *self.at_output)
        elif node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            self._layer(node, layer, f"{node.target}.", inputs)
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            self._function(node, str(name).rstrip("_"), inputs)

    def _layer(self, node: fx.Node, layer: nn.Module, prefix: str, inputs: list[fx.Node]) -> None:
        names = {name: f"{prefix}{name}" for name, _ in layer.named_parameters()}
        self.touched |= set(names.values())
        x = self.carried[inputs[0]] if len(inputs) == 1 else {}
        rank = len(self.shapes[inputs[0]]) if inputs else 0
        bias = [(names["bias"], 0)] if "bias" in names else []
        channels = rank - 1 - SPATIAL.get(type(layer), 0)
        if not set(names) <= {"weight", "bias"}:  # a parametrised layer is named as the plain one
            self._unknown_layer(node, layer, names, inputs)
        elif isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1 and channels == 1
        ):
            self._matrix(node, names["weight"], bias, x, channels)
        elif isinstance(layer, nn.GroupNorm) and layer.num_groups in (1, layer.num_channels):
            self._affine(node, names, x, {0: 1})
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            n = len(layer.normalized_shape)
            self._affine(node, names, x, {axis: rank - n + axis for axis in range(n)})
        elif isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
            self._affine(node, names, x, {0: 1})
        elif isinstance(layer, nn.PReLU):
            self.join(None, (names["weight"], 0))
            self.carried[node] = x
        elif isinstance(layer, ELEMENTWISE_MODULES) and len(inputs) == 1:
            self.carried[node] = x
        elif type(layer) in SPATIAL and not names and node in self.shapes:
            self._keep(node, x, channels, str(node.target))
        elif isinstance(layer, nn.Flatten | nn.Unflatten):
            self._reshape(node, inputs[0], f"{type(layer).__name__} {node.target!r}")
        else:
            self._unknown_layer(node, layer, names, inputs)

    def _unknown_layer(
        self, node: fx.Node, layer: nn.Module, names: Mapping[str, str], inputs: list[fx.Node]
    ) -> None:
        self._unknown(node, inputs, f"{type(layer).__name__} {node.target!r}")
        for name, value in layer.named_parameters():
            own = [(names[name], axis) for axis in range(value.ndim)]
            self.pin(own, f"no rule for {type(layer).__name__} {node.target!r}: its units stay in order")

    def _matrix(self, node: fx.Node, weight: str, bias: list[Any], x: Axes, channels: int) -> None:
        """Rows are new units, columns the units of its input's axis `channels`; further axes stay."""
        ndim = self.module.get_parameter(weight).ndim
        self.join((weight, 1), x.get(channels))
        self.join((weight, 0), *bias)
        self.join(None, *((weight, axis) for axis in range(2, ndim)))
        self._keep(node, x, channels, weight)
        self.carried[node][channels] = (weight, 0)

    def _affine(self, node: fx.Node, names: Mapping[str, str], x: Axes, axes: Mapping[int, int]) -> None:
        """Parameters whose axis `a` lies along axis `axes[a]` of the input."""
        for name in names.values():
            for axis, along in axes.items():
                self.join((name, axis), x.get(along))
        self.carried[node] = x

    def _keep(self, node: fx.Node, x: Axes, last: int, what: str) -> None:
        """Carry on what the axes up to `last` carry; those behind it are mixed."""
        self.pin((v for axis, v in x.items() if axis > last), f"{what} mixes units")
        self.carried[node] = {axis: variable for axis, variable in x.items() if axis <= last}

    def _function(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> None:
        if name in QUESTIONS and node not in self.shapes:
            return
        if node not in self.shapes:
            self._unknown(node, inputs, name)
        elif name in ELEMENTWISE:
            self._elementwise(node, inputs, name)
        elif name in POOLINGS and len(inputs) == 1:
            last = len(self.shapes[inputs[0]]) - 1 - POOLINGS[name]
            self._keep(node, self.carried[inputs[0]], last, name)
        elif name in RESHAPES and len(inputs) == 1:
            self._reshape(node, inputs[0], name)
        elif name in REDUCTIONS and len(inputs) == 1:
            self._reduce(node, inputs[0], name)
        else:
            self._unknown(node, inputs, name)

    def _elementwise(self, node: fx.Node, inputs: list[fx.Node], name: str) -> None:
        """Operands are aligned at their last axes; what is of size 1 is broadcast and joins nothing.

        Units that meet what has an order of its own, a constant or the input, keep theirs.
        """
        shape = self.shapes[node]
        for axis in range(len(shape)):
            joined = []
            for each in inputs:
                own = axis - len(shape) + len(self.shapes[each])
                if own >= 0 and self.shapes[each][own] == shape[axis]:
                    joined.append(self.carried[each].get(own))
            variables = [variable for variable in joined if variable is not None]
            if variables and len(variables) < len(joined):
                self.pin(variables, f"{name} of units and a constant or an input: they stay in its order")
            self.join(*joined)
            if variables:
                self.carried[node][axis] = variables[0]

    def _reshape(self, node: fx.Node, x: fx.Node, what: str) -> None:
        """Only where axes of size 1 come or go does every other axis remain what it was."""
        old, new = self.shapes[x], self.shapes[node]
        before = [axis for axis, size in enumerate(old) if size > 1]
        after = [axis for axis, size in enumerate(new) if size > 1]
        if [old[axis] for axis in before] == [new[axis] for axis in after]:
            place = dict(zip(before, after, strict=True))
            self.carried[node] = {place[a]: v for a, v in self.carried[x].items() if a in place}
            self.pin((v for a, v in self.carried[x].items() if a not in place), f"{what} of one channel")
        else:
            self._unknown(node, [x], f"{what} from {list(old[1:])} to {list(new[1:])}")

    def _reduce(self, node: fx.Node, x: fx.Node, name: str) -> None:
        """A mean over permuted units is what it was; the axes that remain move up where it leaves no gap."""
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        old, new = self.shapes[x], self.shapes[node]
        dims = [given] if isinstance(given, int) else given
        if not isinstance(dims, list | tuple) or not all(isinstance(dim, int) for dim in dims):
            self._unknown(node, [x], name)
            return
        gone = {int(dim) % len(old) for dim in dims if isinstance(dim, int)}
        kept = [axis for axis in range(len(old)) if axis not in gone]
        place = {axis: axis if len(new) == len(old) else i for i, axis in enumerate(kept)}
        self.carried[node] = {place[axis]: v for axis, v in self.carried[x].items() if axis in place}

    def _unknown(self, node: fx.Node, inputs: list[fx.Node], what: str) -> None:
        for each in inputs:
            self.pin(
                self.carried[each].values(), f"no rule for {what}: the units that reach it stay in order"
            )
        self.carried[node] = {}

    def axes_to_perm(self, spec: ParamSpec) -> dict[str, tuple[str | None, ...]]:
        """Named P0, P1, ... in the order of the parameters; what no rule has touched stays."""
        for name, shape in zip(spec.names, spec.shapes, strict=True):
            variables = [(name, axis) for axis in range(len(shape))]
            if name not in self.touched:
                self.join(None, *variables)
            roots = [root for v in variables if (root := self.find(v)) is not None]
            for root in {root for root in roots if roots.count(root) > 1}:
                self.pin([root], f"one permutation would act on two axes of {name}")
        names: dict[Any, str] = {}
        axes: dict[str, tuple[str | None, ...]] = {}
        for name, shape in zip(spec.names, spec.shapes, strict=True):
            roots = [self.find((name, axis)) for axis in range(len(shape))]
            axes[name] = tuple(
                None if root is None else names.setdefault(root, f"P{len(names)}") for root in roots
            )
        return axes


def _holds(module: nn.Module, symmetry: Symmetry, x: Tensor) -> bool:
    """Whether permuted networks compute the same, in float64, on random networks near the given one.

    And whether they would not if one parameter alone were permuted: a test that cannot fail shows nothing.
    """
    rng = torch.Generator().manual_seed(0)
    exact = copy.deepcopy(module).double()
    x = x.double() if x.is_floating_point() else x
    theta = symmetry.spec.flatten(exact.state_dict()).repeat(TRIALS, 1)
    theta = theta + 0.3 * torch.randn(theta.shape, generator=rng, dtype=theta.dtype)

    def changed(symmetry: Symmetry, perms: Mapping[str, Tensor]) -> bool:
        moved = symmetry.apply(theta, perms)
        return not bool(torch.allclose(outputs(moved), before, rtol=0, atol=TOLERANCE * scale))

    @torch.no_grad()
    def outputs(networks: Tensor) -> Tensor:
        unflatten = symmetry.spec.unflatten
        return torch.stack([functional_call(exact, unflatten(network), (x,)) for network in networks])

    before = outputs(theta)
    scale = float(before.abs().max())
    perms = {}
    for name, drawn in symmetry.random(TRIALS, rng=rng).items():
        unmoved = (drawn == torch.arange(drawn.shape[1])).all(1, keepdim=True)
        perms[name] = drawn.roll(1, 1).where(unmoved, drawn)
    if not math.isfinite(scale) or changed(symmetry, perms):
        return False
    for name, size in symmetry.sizes.items():
        first = next(key for key, axes in symmetry.axes_to_perm.items() if name in axes)
        alone: dict[str, tuple[str | None, ...]] = {
            key: (None,) * len(axes) for key, axes in symmetry.axes_to_perm.items()
        }
        alone[first] = tuple(name if axis == name else None for axis in symmetry.axes_to_perm[first])
        if size > 1 and not changed(Symmetry(symmetry.spec, alone), {name: perms[name]}):
            return False
    return True
