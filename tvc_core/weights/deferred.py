"""Build a network for the weights of a file: what the file fills is neither initialized before nor
copied.

A factory makes its layers, each of which draws random weights, and then loads a state dict over
them: half of the work is thrown away, and the other half is a copy of what was read a moment ago.
Here neither is done, without a change of torch that another thread could see:

- An initialization is not run but noted, by the storage that it would fill. Whatever then reads
  that storage, by whatever tensor, has the notes carried out first, in their order; whatever fills
  it whole (`load_state_dict` copies into every parameter) makes them void. What is neither read nor
  filled until the factory has returned is initialized then. So a network looks exactly as it would
  have looked, except for which random numbers were drawn.
- A copy from a tensor that `lend` announced hands its memory over to the parameter instead. Where
  other code holds that memory as well, the parameter gets a copy after all: before anything but
  a look is done with either of them, and at the latest when the factory has returned.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["DeferredInit", "is_whole", "lend", "settle"]

_IN_PLACE = (
    "add_", "bernoulli_", "cauchy_", "clamp_", "clamp_max_", "clamp_min_", "div_", "erfinv_",
    "exponential_", "fill_", "geometric_", "log_normal_", "mul_", "normal_", "random_", "sub_",
    "uniform_", "zero_",
)  # fmt: skip
_FILLS = {getattr(Tensor, name) for name in _IN_PLACE}
"""What initializations are made of, where it needs no other tensor."""

_PROPERTIES = (
    "device", "dtype", "grad", "grad_fn", "is_cpu", "is_cuda", "is_leaf", "is_mkldnn",
    "is_mps", "is_nested", "is_quantized", "is_sparse", "is_xla", "is_xpu", "itemsize", "layout",
    "names", "ndim", "requires_grad", "shape",
)  # fmt: skip
_METHODS = (
    "dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "is_signed",
    "ndimension", "nelement", "numel", "requires_grad_", "size", "storage_offset", "stride",
    "__len__", "__hash__",
)  # fmt: skip
_LOOKS = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES if hasattr(Tensor, name)),
    torch._C._set_grad_enabled,
    torch.empty,
    torch.zeros,
    torch.ones,
    *(getattr(Tensor, name) for name in _METHODS),
}
"""What takes no tensor, or does not look at its values."""

_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]
# How many objects refer to a storage, by a private function of torch. Without it every storage
# counts as shared, and is copied: slower, but right.
_USE_COUNT: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda _: 3)
_THREAD = threading.local()

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def lend(tensors: Iterable[Any]) -> None:
    """Say of tensors that were just read that a network which is being built in this thread may
    take over their memory.
    """
    mode: DeferredInit | None = getattr(_THREAD, "mode", None)
    if mode is not None:
        mode.lent.update(map(_place, filter(is_whole, tensors)))


def settle() -> None:
    """Finish what a network that is being built in this thread is waiting for."""
    mode: DeferredInit | None = getattr(_THREAD, "mode", None)
    if mode is not None:
        mode.finish()


class DeferredInit(TorchFunctionMode):
    """While it is entered, initializations of this thread wait; see the module. Enter it around
    a factory, and call `finish` when the factory has returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lent: set[int] = set()
        self._adopted: dict[int, nn.Parameter] = {}
        # the parameters are kept, so that nothing else can get the memory that stands for them
        self._waiting: dict[int, tuple[nn.Parameter, list[Call]]] = {}

    def __enter__(self) -> Any:
        self._before = getattr(_THREAD, "mode", None)
        _THREAD.mode = self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        _THREAD.mode = self._before
        super().__exit__(*raised)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Every call of torch from Python in this thread comes through here. There are four kinds.
        # What does not read values (`_LOOKS`) is let through. A copy into a parameter makes its
        # notes void, and may hand memory over (`_adopt`). An initialization of a parameter is noted
        # and not run. All else may read any tensor that it is given, so the notes of these are
        # carried out first. Whatever this list does not know is of the last kind, so that a call
        # that is missing from it costs time and never changes a value.
        kwargs = kwargs or {}
        if func in _LOOKS:
            return func(*args, **kwargs)
        first = args[0] if args else kwargs.get("tensor")
        if type(first) is nn.Parameter:
            if func is Tensor.copy_ and len(args) == 2 and self._adopt(first, args[1]):
                return first
            call = _initialization(func, args, kwargs)
            if call is not None and is_whole(first):
                self._separate([_place(first)])
                self._waiting.setdefault(_place(first), (first, []))[1].append(call)
                return True if func == _IS_META else first
            if func == _IS_META:
                return func(*args, **kwargs)
        if self._waiting or self._adopted:
            tensors = list(_tensors((*args, *kwargs.values())))
            self._carry_out(tensors)
            self._separate(map(_place, tensors))
        return func(*args, **kwargs)

    def finish(self) -> None:
        """Initialize what was not filled, and copy what others hold as well."""
        self._carry_out([parameter for parameter, _ in self._waiting.values()])
        self._separate(list(self._adopted))

    def _adopt(self, parameter: nn.Parameter, source: Any) -> bool:
        """Fill a parameter with a tensor; tell whether nothing is left to do."""
        place = _place(parameter)
        if not isinstance(source, Tensor) or source.shape != parameter.shape:
            return False
        self._carry_out([source])
        if is_whole(parameter):
            self._waiting.pop(place, None)
        alike = source.dtype == parameter.dtype and source.device == parameter.device
        there = _place(source)
        if not (alike and there in self.lent and is_whole(source) and is_whole(parameter)):
            return False
        if source.stride() != parameter.stride():
            return False
        self.lent.discard(there)  # a second parameter with these values gets its own copy
        parameter.data = source.detach()
        self._adopted[there] = parameter
        return True

    def _separate(self, places: Iterable[int]) -> None:
        """Give parameters memory of their own where other code holds it as well."""
        for place in places:
            parameter = self._adopted.pop(place, None)
            # two hold it in any case: the parameter, and the object that is asked
            if parameter is not None and _USE_COUNT(parameter.untyped_storage()._cdata) > 2:
                parameter.data = parameter.data.clone()

    def _carry_out(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            waiting = self._waiting.pop(_place(tensor), None)
            if waiting is not None:
                with torch.no_grad():
                    for func, args, kwargs in waiting[1]:
                        func(*args, **kwargs)


def _initialization(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return what is to be called later in place of this call; None for one that does not
    initialize.
    """
    if func == _IS_META:
        # an initializer that rejects samples asks this first, and leaves a tensor without memory
        # alone: it is told so, and called again later
        frame = sys._getframe(2)
        code = frame.f_code
        whole = nn.init.__dict__.get(code.co_name)
        if getattr(whole, "__code__", None) is not code:
            return None
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        args, kwargs, func = (), {name: frame.f_locals[name] for name in names}, whole
    elif func not in _FILLS and getattr(func, "__module__", None) != nn.init.__name__:
        return None
    others = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
    with_tensor = len(others) > ("tensor" in kwargs)
    return None if with_tensor or kwargs.get("generator") is not None else (func, args, kwargs)


def is_whole(tensor: Any) -> bool:
    """Return whether a tensor is all of its memory, in order."""
    # Notes and loans go by the address of a storage. A view of a part of it has the same address,
    # and so has another view of the same part, with other strides; only a tensor that is all of its
    # storage may stand for it.
    with torch._C.DisableTorchFunction():  # to look is no other mode's business
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            return False
        size = tensor.nbytes
        return 0 < size == tensor.untyped_storage().nbytes() and tensor.is_contiguous()


def _place(tensor: Tensor) -> int:
    """Return where a tensor's memory is; 0 where it has none."""
    with torch._C.DisableTorchFunction():
        try:
            return tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # sparse, nested, fake, ...
            return 0


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
