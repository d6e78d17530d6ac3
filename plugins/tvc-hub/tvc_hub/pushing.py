"""Put a model on a hub, with its recipe, its certificates and a card. What can be refused here is
refused before anything is sent.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tvc_core import (
    FileInfo,
    HybridModel,
    Registry,
    WeightsError,
    check_header,
    describe_file,
    join_names,
    load,
    short_repr,
)

from .card import write_card
from .client import client
from .errors import HubError
from .licenses import contradiction, license_of
from .naming import address_of, repository_of, token_for
from .pulling import CODE, MODEL
from .reading import Hub

__all__ = ["Pushed", "push"]

_CARD, _RECIPE = "README.md", "recipe.yaml"
_CERTIFICATES = "*.certificate.json"
_MOST_BESIDE = 1 << 30
"""Of a file beside the model [bytes]."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A model that is on a hub now.

    Args:
        repository: as "user/name".
        commit: what was made, all 40 digits.
        url: where people read it.
        files: names of the files that were sent.
    """

    repository: str
    commit: str
    url: str
    files: tuple[str, ...]


def push(
    path: str | Path,
    name: str,
    *,
    license: str,
    metrics: Mapping[str, Any] | None = None,
    extra: Iterable[str | Path] = (),
    message: str | None = None,
    private: bool | None = None,
    force: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    registry: Registry | None = None,
) -> Pushed:
    """Put a model on a hub: the file, its recipe, the certificates in its folder, and a card that
    is written from facts. All become one commit, or none.

    Args:
        path: a file that `HybridModel.save` wrote, whole.
        name: "user/name"; the repository is made where there is none.
        license: of the model, such as "apache-2.0".
        metrics: figures for the card, as they are.
        extra: more files, such as an exported model or certificates from elsewhere.
        message: of the commit.
        private: whether a new repository is shown to its owner alone; by default as the hub does.
        force: push although the license contradicts that of the weights; the card says so.
        endpoint: address of the hub; by default HF_ENDPOINT, or https://huggingface.co.
        token: who asks; by default HF_TOKEN, or for the default endpoint that of a login.
        hosts: other hosts that the hub keeps files at; they get no token.
        registry: where the names of the recipe are looked up; by default what is installed.

    Raises:
        HubError: there is no license or it contradicts that of the weights, no one else could load
            the file, or the hub does not answer or refuses; it has no new commit then.
        WeightsError: the file cannot be read, or is no model.
        UnknownNameError: it needs a plugin that is not installed.
    """
    repository, revision = repository_of(name)
    if revision is not None:
        raise HubError(f"{name}: a push goes to the main branch: leave '@{revision}' out")
    license = license_of(license)
    path = Path(path)
    info = _described(path, registry)
    contradicts = contradiction(license, info.license)
    if contradicts and not force:
        raise HubError(
            f"{path}: the weights that it started from are under {info.license}, which contradicts "
            f"{license}: {contradicts}. Choose another --license, or --force (force=True) if you "
            "may do it all the same"
        )
    others = _beside(path, extra)
    if license == "other" and not any("license" in each.lower() for each in others):
        raise HubError(
            "the license 'other' is one of your own, whose text has to go with the model: "
            "--with LICENSE (extra=['LICENSE'])"
        )
    model = _loaded(path, registry)
    card = write_card(
        model,
        info,
        name=repository,
        license=license,
        contradicts=contradicts,
        metrics=_plain(metrics),
        others=others.items(),
    )
    assert info.recipe is not None
    files: dict[str, str | bytes] = {
        MODEL: str(path),
        _RECIPE: info.recipe.to_yaml().encode(),
        _CARD: card.encode(),
        **others,
    }
    address = address_of(endpoint, hosts)
    token = token_for(address, token)  # without one, the hub says that it wants one
    from huggingface_hub import CommitOperationAdd

    with client(address, token, f"{repository} was not pushed") as api:
        operations = [
            CommitOperationAdd(path_in_repo=each, path_or_fileobj=content)
            for each, content in files.items()
        ]
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository, operations, commit_message=message or f"Push {path.name} by tvc"
        )
    _look_again(Hub(address=address, token=token), repository, done.oid, files)
    url = f"{address.url}/{repository}"
    return Pushed(repository=repository, commit=done.oid, url=url, files=tuple(files))


def _look_again(hub: Hub, repository: str, commit: str, files: Iterable[str]) -> None:
    """Refuse what was left out (hubs drop what a repository's .gitignore names, without a word),
    and tell what an earlier push has left.
    """
    try:
        listed = hub.listing(repository, commit).files
    except HubError as error:
        text = f"{repository}@{commit} was pushed, and could not be looked at again: {error}"
        warnings.warn(text, stacklevel=3)
        return
    if lacking := [each for each in files if each not in listed]:
        raise HubError(
            f"{repository}@{commit}: was pushed without {join_names(lacking)}, which the hub left "
            "out: look for them in the repository's .gitignore"
        )
    others = [each for each in listed if each not in files and each != ".gitattributes"]
    if code := [each for each in others if PurePosixPath(each).suffix.lower() in CODE]:
        warnings.warn(
            f"{repository} has {join_names(code)}, not of this push, which can hold code, so that "
            "'tvc pull' takes nothing from it: delete what is not needed there",
            stacklevel=3,
        )
    elif others:
        warnings.warn(
            f"{repository} has {join_names(others)} from before, which may be of another model: "
            "delete what is not needed there",
            stacklevel=3,
        )


def _described(path: Path, registry: Registry | None) -> FileInfo:
    info = describe_file(path, registry=registry)
    if info.kind != "model":
        what = "only what differs from its base" if info.kind == "delta" else "tensors alone"
        raise WeightsError(
            f"{path}: holds {what}, and a model is pushed whole: model.save(path) writes one"
        )
    if info.module is not None:
        raise HubError(
            f"{path}: made from a module of your own ({short_repr(info.module)[1:-1]}), whose code "
            "no one else has: offer it as a backbone by a plugin ('tvc new-plugin'), and build the "
            "model from that"
        )
    return info


def _loaded(path: Path, registry: Registry | None) -> HybridModel:
    check_header(path, registry=registry)  # what a reader checks first
    return load(path, registry=registry)


def _beside(path: Path, extra: Iterable[str | Path]) -> dict[str, bytes]:
    """Return names and contents of the files that go with a model."""
    found: dict[str, bytes] = {}
    for each in [*sorted(path.parent.glob(_CERTIFICATES)), *map(Path, extra)]:
        name = each.name
        if name in found and found[name] == _content(each):
            continue  # named, and in the folder as well
        if name in (MODEL, _RECIPE, _CARD, *found):
            raise HubError(f"{each}: the repository has a {name} already; give it another name")
        if each.suffix.lower() in CODE:
            raise HubError(
                f"{each}: can hold code, and 'tvc pull' takes nothing from a repository with such "
                "files"
            )
        found[name] = _content(each)
        if name.endswith(_CERTIFICATES[1:]):
            try:
                fine = isinstance(json.loads(found[name]), dict)
            except (ValueError, RecursionError):
                fine = False
            if not fine:
                raise HubError(f"{each}: is no certificate: that is a JSON object")
    return found


def _content(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BESIDE:
            raise HubError(f"{path}: no regular file of at most {_MOST_BESIDE:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise HubError(f"{path}: cannot be read: {error.strerror or error}") from error


def _plain(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return figures as JSON has them."""
    try:
        return dict(json.loads(json.dumps(dict(metrics or {}), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise HubError(f"the metrics are plain data: names, numbers and texts: {error}") from error
