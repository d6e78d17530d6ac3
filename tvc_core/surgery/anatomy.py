"""Which part of a network every module and parameter belongs to: stem, stage i or head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import BackboneError, StageError, did_you_mean, join_names
from ..specs import BackboneSpec
from .sites import find_module, has_module

__all__ = ["HEAD", "STEM", "Anatomy", "StageInfo", "stage_name"]

STEM, HEAD = "stem", "head"


def stage_name(index: int) -> str:
    """Return the name of a stage's part, such as "stage 2"."""
    return f"stage {index}"


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """One stage as it was measured in the patched network.

    Args:
        stage: the number that `unfreeze_stages` takes; the stage's map is
            `get_stage_outputs(x)[stage + 1]`.
        module: path of the stage's last module, whose output is the stage's map.
        paths: paths of all its modules, in order of execution.
        channels: channels of its map [channels].
        stride: side of the image divided by the side of the map [pixels].
        layout: layout of the map inside the network, such as "NCHW".
    """

    stage: int
    module: str
    paths: tuple[str, ...]
    channels: int
    stride: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of one network.

    Args:
        stem: paths from the input to the first stage.
        stages: paths of each stage.
        head: path of the classifier.
        auxiliary: paths of the auxiliary heads that the network has, each with the stage that it
            branches from.
        neck: paths between pooling and the classifier, which are part of the head.
        branches: where the residual branches of known blocks end; see `BackboneSpec.branches`.
    """

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    head: str
    auxiliary: tuple[tuple[str, int], ...] = ()
    neck: tuple[str, ...] = ()
    branches: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(network: nn.Module, spec: BackboneSpec, *, checked: bool = False) -> Anatomy:
        """Return the anatomy that a spec declares, checked against the network.

        Args:
            network: the backbone.
            spec: its description.
            checked: the two were seen to fit before.

        Raises:
            BackboneError: a path is not there or is a second name of what is there, is in two
                parts, or a parameter or buffer is in none.
        """
        auxiliary = tuple(
            (path, stage) for path, stage in spec.auxiliary.items() if has_module(network, path)
        )
        anatomy = Anatomy(
            stem=spec.stem,
            stages=spec.stage_paths,
            head=spec.head,
            auxiliary=auxiliary,
            neck=spec.neck,
            branches=dict(spec.branches),
        )
        if checked:
            return anatomy
        modules = dict(network.named_modules())
        # A spec says where the parts are, and nothing else will notice if it is wrong: a forgotten
        # path would leave its parameters trainable when all is frozen, a path too many would count
        # them twice. So the parts must partition the tensors of this very network, each under its
        # first name.
        tensors = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        fault = f"the backbone {spec.name!r} does not look as its spec says: "
        paths = [path for _, path in anatomy.items()]
        for path in paths:
            if path not in modules and path not in tensors:
                if (first := _first_name(network, path)) is not None:
                    raise BackboneError(
                        f"{fault}{path!r} is {first!r} under a second name (the two are one "
                        "object), and what it is belongs to one part, under its first name"
                    )
                raise BackboneError(
                    f"{fault}it has no {path!r}; its children are {join_names(network._modules)}"
                )
            if paths.count(path) > 1 or any(path.startswith(f"{other}.") for other in paths):
                raise BackboneError(f"{fault}{path!r} belongs to two parts")
        for part, declared in ((STEM, (anatomy.stem,)), ("stages", anatomy.stages)):
            if not declared or any(not paths or paths[-1] not in modules for paths in declared):
                raise BackboneError(
                    f"{fault}{part} is {list(declared)}; each ends with a module, whose output is "
                    "its map"
                )
        if spec.head not in modules:
            raise BackboneError(f"{fault}its head {spec.head!r} is not a module")
        lost = sorted(name for name in tensors if not _is_in(name, paths))
        if lost:
            raise BackboneError(
                f"{fault}stem, stages and head together lack {join_names(lost, most=5)}"
            )
        return anatomy

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield (part, path) in order of execution."""
        yield from ((STEM, path) for path in self.stem)
        for index, stage in enumerate(self.stages):
            yield from ((stage_name(index), path) for path in stage)
            yield from (
                (stage_name(index), path) for path, branch in self.auxiliary if branch == index
            )
        yield from ((HEAD, path) for path in self.neck)
        yield HEAD, self.head

    @property
    def parts(self) -> list[str]:
        """Names of all parts in order: "stem", "stage 0", ..., "head"."""
        return [STEM, *(stage_name(index) for index in range(len(self.stages))), HEAD]

    @property
    def heads(self) -> list[str]:
        """Paths of the head and of the auxiliary heads."""
        return [self.head, *(path for path, _ in self.auxiliary)]

    @property
    def taps(self) -> list[str]:
        """Paths of the modules whose outputs are the features: the stem's last and each stage's
        last.
        """
        return [paths[-1] for paths in (self.stem, *self.stages)]

    # Parts are paths and never modules: a path stays right when a tool exchanges the module there,
    # and survives copies, pickles and files. A name belongs to the part whose path it is or begins
    # with, up to a dot, so that `layer1` does not hold `layer10`.
    def part_of(self, name: str) -> str | None:
        """Return the part that a module's or parameter's dotted name belongs to; None for what has
        no part.
        """
        return next(
            (part for part, path in self.items() if name == path or name.startswith(f"{path}.")),
            None,
        )

    def modules(self, network: nn.Module, part: str) -> Iterator[tuple[str, nn.Module]]:
        """Yield (path, module) of a part's modules; its direct parameters are not modules."""
        for found, path in self.items():
            if found == part and (module := find_module(network, path)) is not None:
                yield path, module

    def stage_indices(self, given: object) -> list[int]:
        """Return stages as indices from 0, in order, each once.

        Args:
            given: a stage, or several: numbers, of which negative ones count from the end, and
                paths, of which each names the stage that it is one of.

        Raises:
            StageError: a stage that is not there.
        """
        many = isinstance(given, (list, tuple, set, frozenset, range))
        stages: Iterable[Any] = given if many else [given]  # type: ignore[assignment]
        return sorted({self._stage_index(each) for each in stages})

    def _stage_index(self, given: Any) -> int:
        count = len(self.stages)
        if isinstance(given, int) and not isinstance(given, bool) and -count <= given < count:
            return given % count
        for index, paths in enumerate(self.stages):
            if given in paths:
                return index
        part = self.part_of(given) if isinstance(given, str) else None
        what = "no stage" if part in (STEM, HEAD) else "named as a whole"
        inside = f" ({given!r} is in {part}, which is {what})" if part else ""
        every = [path for paths in self.stages for path in paths]
        near = did_you_mean(given, every) if isinstance(given, str) and not part else ""
        names = ", ".join(f"{index}: {'+'.join(paths)}" for index, paths in enumerate(self.stages))
        raise StageError(
            f"there is no stage {given!r}{inside}: the {count} stages are {names}; -1 is the last"
            f"{near and f'.{near}'}"
        )

    def feature_indices(self, given: object) -> list[int]:
        """Return the indices of features (0 is the stem, i + 1 is stage i) for stage numbers and
        "stem", in the given order.

        Raises:
            StageError: a stage that is not there, or nothing.
        """
        numbers: list[Any] = list(given) if isinstance(given, (list, tuple, range)) else [given]
        if not numbers:
            raise StageError(
                'no stage is asked for: give stage numbers, "stem", or None for stem and all stages'
            )
        return [0 if number == STEM else self.stage_indices([number])[0] + 1 for number in numbers]


def _is_in(name: str, paths: Collection[str]) -> bool:
    """Return whether a name is one of some paths, or inside of what stands at one."""
    while name and name not in paths:
        name = name.rpartition(".")[0]
    return bool(name)


def _first_name(network: nn.Module, path: str) -> str | None:
    """Return the name under which a shared module or tied tensor is listed; None for what is not
    there.
    """
    everything = (network.named_modules, network.named_parameters, network.named_buffers)
    for named in everything:
        found = dict(named(remove_duplicate=False)).get(path)
        if found is not None:
            return next(name for name, other in named() if other is found)
    return None
