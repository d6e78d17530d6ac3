"""Where a model can be cut in two: below, all is frozen and computes the same in every epoch; above
it, something learns.

The forward pass is traced as it runs in training. A step of it is settled if what it gets is, if no
parameter of it learns, and if it does nothing that differs from epoch to epoch: no dropout, no
statistics of the batch. The cut is after the last settled step whose result is all that later steps
need, and both halves are compared with the whole before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tvc_core import short_repr

from ..errors import TrainingError
from ..modes import modes_kept

__all__ = ["CutError", "Halves", "cut"]

_RANDOM = ("dropout", "stochastic_depth", "rand", "bernoulli", "multinomial", "normal", "rrelu")
"""What functions that draw random numbers have in their names."""

_LEARNS = " learns"
_BatchNorm = nn.modules.batchnorm._BatchNorm

_FEW = 2  # images with which the halves are compared


class CutError(TrainingError):
    """A model has no place where it can be cut."""

    all_learns = False
    """Already its first weights learn, so there is nothing to compute once."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A model in two parts, which share its modules.

    Args:
        below: from images to features, the same in every epoch.
        where: the last module below, or the step.
        shape: of the features of one image.
        dtype: of the features.
        above: from features to logits, in training and in evaluation mode.
    """

    below: fx.GraphModule
    where: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    above: dict[bool, fx.GraphModule]


def cut(model: nn.Module, images: Tensor, context: Callable[[], Any]) -> Halves:
    """Cut a model where all below is settled.

    Args:
        model: in the mode in which it trains.
        images: two or more, as the model takes them.
        context: of computing, such as autocast.

    Raises:
        CutError: nothing is settled, or it cannot be told; the message says what is in the way.
    """
    images = images[:_FEW]
    graphs: dict[bool, fx.Graph] = {}
    with modes_kept(model):
        norms = (each for each in model.modules() if isinstance(each, _BatchNorm))
        moving: set[nn.Module] = {each for each in norms if each.training}
        graphs[True] = _traced(model, moving)
        place, nodes = _place(model, graphs[True])
        below = fx.GraphModule(model, _below(graphs[True], nodes[place]))
        model.eval()
        graphs[False] = _traced(model, moving)
        twin = _twin(graphs[True], graphs[False], nodes[place])
        above = {
            True: fx.GraphModule(model, _above(graphs[True], nodes[place])),
            False: fx.GraphModule(model, _above(graphs[False], twin)),
        }
        with torch.no_grad(), context():
            wanted = model(images)
            found = above[False](below(images))
    if not _equal(wanted, found):
        raise CutError("its halves compute something other than the whole, as it runs code that "
                       "depends on values")  # fmt: skip
    features = _settled_features(model, below, images, context)
    where = _named(nodes[place])
    shape = tuple(features.shape[1:])
    return Halves(below=below, where=where, shape=shape, dtype=features.dtype, above=above)


class _Tracer(fx.Tracer):
    """Records modules of torch as one step each, and goes into all others."""

    proxy_buffer_attributes = True  # or what writes into one would do so while it is traced

    def __init__(self, moving: set[nn.Module]) -> None:
        super().__init__()
        self._moving = moving

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also a library's own normalization, where its statistics move: a phase may fix them, or
        estimate them again, and a trace would keep the mode and momentum that it was made with.
        """
        return m in self._moving or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a module; one that no name leads to, such as a node of patches, is gone into."""
        try:
            self.path_of_module(m)
        except NameError:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _traced(model: nn.Module, moving: set[nn.Module]) -> fx.Graph:
    try:
        return _Tracer(moving).trace(model)
    except Exception as error:  # whatever the network's own code raises when it is traced
        raise CutError(f"its forward pass cannot be traced: {short_repr(str(error))}") from error


# -- where -----------------------------------------------------------------------------------------


def _place(model: nn.Module, graph: fx.Graph) -> tuple[int, list[fx.Node]]:
    """Return the number of the step after which to cut, and all steps."""
    nodes = list(graph.nodes)
    order = {node: number for number, node in enumerate(nodes)}
    image = next(node for node in nodes if node.op == "placeholder")
    of_image = {image}
    unsettled: dict[fx.Node, str] = {}
    weighty: set[fx.Node] = set()  # those with weights below them
    for node in nodes:
        inputs = node.all_input_nodes
        if any(each in of_image for each in inputs):
            of_image.add(node)
        why = next((unsettled[each] for each in inputs if each in unsettled), "")
        if why or (why := _unsettled(model, node)):
            unsettled[node] = why
        if any(each in weighty for each in inputs) or _has_weights(model, node):
            weighty.add(node)
        if node in unsettled and _is_frozen(model, node) and not why.endswith(_LEARNS):
            raise CutError(f"{node.target} is frozen, and gets something else in each epoch: {why}")
    best, live = -1, {image: order[image]}
    last_use = {n: max((order[user] for user in n.users), default=-1) for n in nodes}
    for number, node in enumerate(nodes):
        if node in of_image and node.op != "output":
            live[node] = number
        live = {each: at for each, at in live.items() if last_use[each] > number}
        if [*live] == [node] and node in weighty and node not in unsettled:
            best = number
    if best < 0:
        ways = (unsettled[node] for node in nodes if node in of_image and node in unsettled)
        first = next(ways, "the forward pass has no step with weights")
        error = CutError(f"there is nothing to cache: {first}")
        error.all_learns = first.endswith(_LEARNS)
        raise error
    if written := next((each for n in nodes[: best + 1] if (each := _written(n))), ""):
        raise CutError(f"what is below changes {written} with every batch")
    return best, nodes


def _unsettled(model: nn.Module, node: fx.Node) -> str:
    """Say why a step differs from epoch to epoch, though what it gets does not."""
    if node.op == "get_attr":
        value: Any = _attribute(model, str(node.target))
        learns = isinstance(value, Tensor) and value.requires_grad
        return f"{node.target}{_LEARNS}" if learns else ""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                return f"{node.target}.{name}{_LEARNS}"
        return next(_restless(str(node.target), module), "")
    if node.op in ("call_function", "call_method"):
        name = str(getattr(node.target, "__name__", node.target))
        flag = node.kwargs.get("training")
        if flag is None and name in ("stochastic_depth", "dropout", "feature_dropout"):
            flag = next((arg for arg in reversed(node.args) if isinstance(arg, bool)), True)
        words = name.replace("normalize", "")
        if any(word in words for word in _RANDOM) and flag is not False:
            return f"the step {node.name} draws random numbers"
        if "batch_norm" in name and flag:
            return f"the step {node.name} uses the statistics of each batch"
        if name == "scaled_dot_product_attention":
            part = node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0)
            return f"the step {node.name} drops at random" if part else ""
    return ""


def _restless(path: str, module: nn.Module) -> Iterator[str]:
    """Say what in a module differs from epoch to epoch."""
    for name, each in module.named_modules(prefix=path):
        if not each.training:
            continue
        kind = type(each).__name__
        if isinstance(each, (_BatchNorm, nn.modules.instancenorm._InstanceNorm)):
            if each.track_running_stats or isinstance(each, _BatchNorm):
                yield f"{name} ({kind}) uses the statistics of each batch"
        elif isinstance(each, nn.modules.dropout._DropoutNd):
            if each.p > 0:
                yield f"{name} ({kind}) drops at random"
        elif isinstance(each, nn.RReLU):
            yield f"{name} ({kind}) draws random numbers"
        elif isinstance(each, nn.MultiheadAttention) and each.dropout > 0:
            yield f"{name} ({kind}) drops at random"


def _has_weights(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return isinstance(_attribute(model, str(node.target)), nn.Parameter)
    if node.op != "call_module":
        return False
    return next(model.get_submodule(str(node.target)).parameters(), None) is not None


def _written(node: fx.Node) -> str:
    """Return the buffer into which a step writes; "" where it writes into none."""
    name = str(getattr(node.target, "__name__", node.target))
    to = node.args[0] if node.args else None
    writes = (node.op == "call_method" and name.endswith("_") and not name.endswith("__")) or (
        node.op == "call_function" and name in ("iadd", "isub", "imul", "itruediv", "setitem")
    )
    held = isinstance(to, fx.Node) and to.op == "get_attr"
    return str(to.target) if writes and held and isinstance(to, fx.Node) else ""


def _is_frozen(model: nn.Module, node: fx.Node) -> bool:
    """Return whether a step is a module with weights, of which none learn."""
    if node.op != "call_module":
        return False
    found = [*model.get_submodule(str(node.target)).parameters()]
    return bool(found) and not any(parameter.requires_grad for parameter in found)


def _attribute(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _named(node: fx.Node) -> str:
    """Return what a user would call a step: its module, or the one that it is in."""
    if node.op == "call_module":
        return str(node.target)
    within = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return within[-1] if within and within[-1] else str(node.name)


def _twin(graph: fx.Graph, other: fx.Graph, node: fx.Node) -> fx.Node:
    """Return the step of another trace that is the same one: the same module's same call."""
    same = [each for each in graph.nodes if (each.op, each.target) == (node.op, node.target)]
    there = [each for each in other.nodes if (each.op, each.target) == (node.op, node.target)]
    if node.op == "call_module" and len(same) == len(there):
        return there[same.index(node)]
    for each in there:
        if each.name == node.name:
            return each
    raise CutError(f"the step {node.name} is another one in evaluation mode")


# -- the halves ------------------------------------------------------------------------------------


def _below(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return what leads to a step."""
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _needed({last}, None)
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = made.node_copy(node, lambda each: copies[each])
    made.output(copies[last])
    return made


def _above(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return what comes after a step, from its result; constants of earlier steps come along."""
    made = fx.Graph()
    copies = {last: made.placeholder("features")}
    order = {node: number for number, node in enumerate(graph.nodes)}
    ends = {
        node
        for node in graph.nodes
        if node.op == "output" or (order[node] > order[last] and _writes(node))
    }
    needed = _needed(ends, last)
    for node in graph.nodes:  # in their order, as some write into what others read
        if node in needed and node.op != "output":
            if node.op == "placeholder":
                raise CutError("something above the cut needs the image itself")
            copies[node] = made.node_copy(node, lambda each: copies[each])
    output = next(node for node in graph.nodes if node.op == "output")
    made.output(fx.node.map_arg(output.args[0], lambda each: copies[each]))
    return made


def _needed(ends: set[fx.Node], start: fx.Node | None) -> set[fx.Node]:
    """Return the steps that lead to some others, these included, back to one that is left out."""
    found, waiting = set(), [*ends]
    while waiting:
        node = waiting.pop()
        if node not in found and node is not start:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _writes(node: fx.Node) -> bool:
    """Return whether a step whose result nothing uses writes into a tensor."""
    name = str(getattr(node.target, "__name__", node.target))
    return not node.users and node.op == "call_method" and name.endswith("_")


def _settled_features(
    model: nn.Module, below: nn.Module, images: Tensor, context: Callable[[], Any]
) -> Tensor:
    """Return the features of images, if they are the same each time and each image has its own."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), context():
        first, second = below(images), below(images)
        alone = below(images[:1])
    changed = [name for name, buffer in model.named_buffers() if not buffer.equal(before[name])]
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    if not isinstance(first, Tensor) or first.shape[:1] != images.shape[:1]:
        raise CutError("what is below does not give one tensor with a row for each image")
    if changed:
        raise CutError(f"what is below changes {changed[0]} with every batch")
    if not first.equal(second):
        raise CutError("what is below gives other features each time")
    if not torch.allclose(first[:1].float(), alone.float(), rtol=1e-3, atol=1e-4):
        raise CutError("what is below mixes the images of a batch")
    return first


def _equal(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(found, Tensor) and torch.allclose(
            wanted.float(), found.float(), rtol=1e-4, atol=1e-5
        )
    if isinstance(wanted, dict):
        return wanted.keys() == found.keys() and all(_equal(wanted[k], found[k]) for k in wanted)
    if isinstance(wanted, (tuple, list)):
        return len(wanted) == len(found) and all(map(_equal, wanted, found))
    return bool(wanted == found)
