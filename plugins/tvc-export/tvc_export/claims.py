"""For which images an exported file was proved: what torch.export found that the network asks of
their sizes.

torch.export runs a network with sizes that are symbols. Where the network decides something by a
size, the decision is written down as a guard, and the exported program holds for sizes that pass
all guards. A `.pt2` file checks them itself; other formats drop them, so that a file runs at any
size and may be wrong there. So the guards are what is claimed, for every format.
"""

from __future__ import annotations

import ast
import math
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvc_core import BackboneError, ParameterError, short_repr

__all__ = ["AXES", "Claims"]

AXES = {"batch": (0,), "hw": (2, 3)}
"""What may vary, and the dimensions of [N, C, H, W] that it means."""

_NAMES = ("n", "c", "h", "w")
_SIZE = re.compile(r"L\['\w+'\]\.size\(\)\[([0-3])\]")
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Div: operator.truediv, ast.Mod: operator.mod,
    ast.Pow: operator.pow, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.USub: operator.neg,
    ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip
_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("max", "Max", "torch.sym_max"), max),
    **dict.fromkeys(("min", "Min", "torch.sym_min"), min),
    **dict.fromkeys(("not", "torch.sym_not"), operator.not_),
    **dict.fromkeys(("int", "math.trunc", "torch.sym_int"), int),
    **dict.fromkeys(("float", "torch.sym_float"), float),
    "Mod": operator.mod, "abs": abs, "math.floor": math.floor, "math.ceil": math.ceil,
    "math.sqrt": math.sqrt, "torch._sym_sqrt": math.sqrt,
    "torch.sym_ite": lambda condition, one, other: one if condition else other,
}  # fmt: skip
"""Functions in guards, as torch writes them."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The sizes of images for which a file was proved.

    Args:
        sizes: for each of N, C, H and W its smallest and largest value; the largest is None where
            there is no bound.
        conditions: what else has to be true, as expressions of n, h and w.
        example: the shape that the export saw.
    """

    sizes: tuple[tuple[int, int | None], ...]
    conditions: tuple[str, ...]
    example: tuple[int, ...]

    @classmethod
    def of(cls, program: Any, example: Sequence[int]) -> Claims:
        """Return what a program of torch.export holds for.

        Args:
            program: the ExportedProgram.
            example: shape of the image that it was made with.

        Raises:
            BackboneError: a guard cannot be read, so that nothing can be claimed, or this torch
                keeps no guards.
        """
        node = next(
            node
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        )
        ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
        sizes: list[tuple[int, int | None]] = []
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, int):
                sizes.append((size, size))
                continue
            bounds = ranges[str(size)]
            # Torch counts from 2, and writes no guard where a network asks whether a size is 1. For
            # a batch of 1 the proof tries it; images of one row are not claimed.
            lower = 1 if axis == 0 and int(bounds.lower) == 2 else int(bounds.lower)
            upper = None if str(bounds.upper) in ("int_oo", "oo") else int(bounds.upper)
            sizes.append((lower, upper))
        guards = getattr(program, "_guards_code", None)
        if guards is None and any(low != high for low, high in sizes):
            raise BackboneError(
                f"torch {torch.__version__} does not say for which sizes an exported program "
                "holds: install a newer torch, or export for one size"
            )
        conditions = tuple(_condition(guard) for guard in guards or ())
        return cls(sizes=tuple(sizes), conditions=conditions, example=tuple(example))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Claims:
        """Return what `as_mapping` returned.

        Raises:
            ValueError: it is something else.
        """
        sizes = tuple((low, high) for low, high in data["sizes"])
        for condition in data["conditions"]:
            _evaluate(condition, dict.fromkeys(_NAMES, 224))
        return cls(
            sizes=sizes, conditions=tuple(data["conditions"]), example=tuple(data["example"])
        )

    def as_mapping(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "sizes": [list(each) for each in self.sizes],
            "conditions": list(self.conditions),
            "example": list(self.example),
        }

    def __str__(self) -> str:
        shape = ", ".join(
            f"{name} from {low}{'' if high is None else f' to {high}'}" if low != high else str(low)
            for name, (low, high) in zip(_NAMES, self.sizes, strict=True)
        )
        where = f" where {' and '.join(self.conditions[:2])}" if self.conditions else ""
        rest = len(self.conditions) - 2
        return f"[{shape}]{where}{f' and {rest} more' if rest > 0 else ''}"

    @property
    def free(self) -> tuple[int, ...]:
        """The dimensions that may vary."""
        return tuple(axis for axis, (low, high) in enumerate(self.sizes) if low != high)

    def why_not(self, shape: Sequence[int]) -> str:
        """Return what of the claims a shape does not meet; an empty string where it meets all."""
        if len(shape) != len(self.sizes):
            return f"it has {len(shape)} dimensions"
        named = zip(_NAMES, shape, self.sizes, strict=True)
        for name, size, (low, high) in named:
            if size < low or (high is not None and size > high):
                return f"{name} is {size}"
        values = dict(zip(_NAMES, shape, strict=True))
        for condition in self.conditions:
            try:
                if not _evaluate(condition, values):
                    return f"{condition} is not true"
            except ArithmeticError as error:
                return f"{condition} has no value: {error}"
        return ""

    def check(self, shape: Sequence[int], what: str) -> None:
        """Refuse a shape outside of the claims.

        Raises:
            ParameterError: it is outside; the message names both.
        """
        if why := self.why_not(shape):
            raise ParameterError(
                f"images {list(shape)} are outside of what {what} was proved for, since {why}: "
                f"{self}"
            )

    def draw(self, number: int, seed: int) -> list[tuple[int, ...]]:
        """Return shapes inside the claims that the export did not see, as many as there are of them
        up to `number`; of batches the first has one image.
        """
        chance = random.Random(seed)
        found: list[tuple[int, ...]] = []
        for turn in range(200 * number):
            # networks ask for multiples of their stride, and some for as many rows as columns
            step, alike = chance.choice((1, 1, 2, 8, 16, 32)), chance.random() < 0.3
            shape = list(self.example)
            for axis in self.free:
                low, high = self.sizes[axis]
                middle = self.example[axis]
                if axis == 0:
                    shape[0] = chance.randint(low, max(low, 4)) if turn else low
                elif axis == 3 and alike and 2 in self.free:
                    shape[3] += shape[2] - self.example[2]
                else:
                    shape[axis] += step * chance.randint(-middle // 2 // step, middle // 3 // step)
                shape[axis] = max(low, shape[axis] if high is None else min(shape[axis], high))
            candidate = tuple(shape)
            if candidate not in (self.example, *found) and not self.why_not(candidate):
                found.append(candidate)
            if len(found) == number:
                break
        return found


def _condition(guard: str) -> str:
    text = _SIZE.sub(lambda match: _NAMES[int(match[1])], guard)
    try:
        _evaluate(text, dict.fromkeys(_NAMES, 224))
    except ArithmeticError:
        pass
    except ValueError as error:
        raise BackboneError(
            f"torch.export found the condition {guard!r}, which cannot be checked outside of "
            f"torch ({error}), so nothing is claimed for other sizes: export for one size"
        ) from error
    return text


def _evaluate(text: str, values: Mapping[str, int]) -> Any:
    """Return the value of an expression of sizes; only arithmetic is computed, nothing is run.

    Raises:
        ValueError: it is something else.
        ArithmeticError: it has no value.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no expression") from error
    return _value(tree, values)


def _value(node: ast.AST, values: Mapping[str, int]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        return node.value
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, values), _value(node.right, values)
        if isinstance(node.op, ast.Pow) and abs(right) > 8:
            raise ValueError("a power that large is not computed")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.BoolOp):
        found = (_value(each, values) for each in node.values)
        return all(found) if isinstance(node.op, ast.And) else any(found)
    if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
        sides = [_value(each, values) for each in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return all(_OPERATORS[type(op)](a, b) for op, a, b in pairs)
    if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in _CALLS:
        return _CALLS[name](*(_value(each, values) for each in node.args))
    raise ValueError(f"{short_repr(ast.unparse(node))} is no arithmetic of sizes")
