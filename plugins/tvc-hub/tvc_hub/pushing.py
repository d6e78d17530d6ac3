"""Put a model on a hub, with its recipe, its certificates and a card. What can be refused here is
refused before anything is sent.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
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
    digest_of_tensors,
    join_names,
    load,
    short_repr,
)

from .card import write_card
from .client import client
from .errors import HubError
from .licenses import contradiction, license_of
from .naming import address_of, is_plain, repository_of, token_for
from .pulling import CODE, MODEL
from .reading import Hub

__all__ = ["Pushed", "push"]

_CARD, _RECIPE = "README.md", "recipe.yaml"
_CERTIFICATE = ".certificate.json"
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
        left_out: why certificates in the file's folder were not, by their names.
    """

    repository: str
    commit: str
    url: str
    files: tuple[str, ...]
    left_out: Mapping[str, str]


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
    """Put a model on a hub: the file, its recipe, its certificates, and a card that is written from
    facts. All become one commit, or none.

    Its certificates are the `*.certificate.json` in its folder that name the SHA-256 of the file or
    of its tensors, as that of what they are for or of what that was made from. Others are left out.

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
    others = _named(extra)
    if license == "other" and not any("license" in each.lower() for each in others):
        raise HubError(
            "the license 'other' is one of your own, whose text has to go with the model: "
            "--with LICENSE (extra=['LICENSE'])"
        )
    model = _loaded(path, registry)
    left_out = _add_certificates(others, path, info, model)
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
    for each in files:
        if not is_plain(each):
            raise HubError(
                f"{short_repr(each)}: 'tvc pull' takes nothing from a repository with such a name, "
                "which is none of a file on every system: give it another one"
            )
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
    return Pushed(
        repository=repository, commit=done.oid, url=url, files=tuple(files), left_out=left_out
    )


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


def _named(extra: Iterable[str | Path]) -> dict[str, bytes]:
    """Return names and contents of the files that the user wants to go with a model."""
    found: dict[str, bytes] = {}
    for each in map(Path, extra):
        name, content = each.name, _content(each)
        if found.get(name) == content:
            continue
        if name in (MODEL, _RECIPE, _CARD, *found):
            raise HubError(f"{each}: the repository has a {name} already; give it another name")
        if each.suffix.lower() in CODE:
            raise HubError(
                f"{each}: can hold code, and 'tvc pull' takes nothing from a repository with such "
                "files"
            )
        if name.endswith(_CERTIFICATE) and _hashes_in(content) is None:
            raise HubError(f"{each}: {_NONE}")
        found[name] = content
    return found


_NONE = "is no certificate: that is a JSON object"


def _add_certificates(
    others: dict[str, bytes], path: Path, info: FileInfo, model: HybridModel
) -> dict[str, str]:
    """Add the certificates of a model to what goes with it; return why others in its folder do not.

    Raises:
        HubError: the user wants another file of the same name.
    """
    own = {
        info.sha256,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        digest_of_tensors(model.state_dict()),
    }
    left_out: dict[str, str] = {}
    for each in sorted(path.parent.glob(f"*{_CERTIFICATE}")):
        try:
            content = _content(each)
        except HubError as error:
            left_out[each.name] = str(error).removeprefix(f"{each}: ")
            continue
        if others.get(each.name) == content:
            continue  # named, and in the folder as well
        if why := _why_not(content, own):
            left_out[each.name] = why
        elif each.name in others:
            raise HubError(
                f"{each}: goes with the model, and so would another {each.name}; give that one "
                "another name"
            )
        else:
            others[each.name] = content
    for name, content in others.items():
        if name.endswith(_CERTIFICATE) and (why := _why_not(content, own)):
            warnings.warn(f"{name}: {why}; it goes with this one all the same", stacklevel=3)
    return left_out


def _why_not(certificate: bytes, own: Collection[str]) -> str:
    """Return why a certificate is not of a model with these hashes; nothing where it is."""
    hashes = _hashes_in(certificate)
    if hashes is None:
        return _NONE
    return "" if hashes & {*own} else "is of another model: it does not name the hash of this one"


def _hashes_in(certificate: bytes) -> set[str] | None:
    """Return the hashes of what a certificate is for, and of what that was made from; None where it
    is none.
    """
    try:
        said = json.loads(certificate)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    source = said.get("source")
    parts = (said, source if isinstance(source, dict) else {})
    return {str(part["sha256"]).lower() for part in parts if "sha256" in part}


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
