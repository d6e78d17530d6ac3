"""What is pushed comes back bit for bit, and again without a hub."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub, Handler
from hub_files import taken_apart
from tvc_hub import HubError, UnreachableError, pull, push

import tvc_core
from tvc_core import BlockSpec, HybridBuilder, LocalPlugin, ParameterError, WeightsError


@pytest.mark.parametrize("lfs", [True, False])
def test_a_model_comes_back_as_it_was(hub: FakeHub, path: Path, lfs: bool) -> None:
    hub.lfs = lfs
    done = push(path, "user/pets", license="mit", endpoint=hub.url)
    assert done.files == ("model.safetensors", "recipe.yaml", "README.md")
    assert ("PUT" in {method for method, _, _ in hub.asked}) == lfs
    found = pull("user/pets", endpoint=hub.url)
    assert (found.commit, found.fetched, found.before) == (done.commit, True, None)
    assert found.path.read_bytes() == path.read_bytes()
    one, two = tvc_core.load(found), tvc_core.load(path)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(one(image), two(image))
    assert one.class_names == ("cat", "dog | fox", "<b>owl</b>")


def test_the_client_says_nothing_of_the_machine(hub: FakeHub, path: Path) -> None:
    push(path, "user/pets", license="mit", endpoint=hub.url)
    pull("user/pets", endpoint=hub.url)
    assert not [agent for agent in hub.agents if "torch" in agent or "agent" in agent]
    paths = [path for _, path, _ in hub.asked]
    assert not [each for each in paths if "telemetry" in each or "harness" in each]
    assert {t for _, path, t in hub.asked if path.startswith("/store/")} == {None}


def test_the_users_settings_of_the_client_are_as_before(hub: FakeHub, path: Path) -> None:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import _http, are_progress_bars_disabled

    def settings() -> list[object]:
        switches = constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_TELEMETRY
        return [*switches, _http._GLOBAL_CLIENT_FACTORY, are_progress_bars_disabled()]

    before = settings()
    push(path, "user/pets", license="mit", endpoint=hub.url)
    assert settings() == before
    assert [hook.__name__ for hook in get_session().event_hooks["request"]] == [
        "hf_request_event_hook"
    ]


def test_a_second_pull_asks_for_the_commit_alone(hub: FakeHub, path: Path) -> None:
    push(path, "user/pets", license="mit", endpoint=hub.url)
    first = pull("user/pets", endpoint=hub.url)
    hub.asked.clear()
    second = pull("user/pets", endpoint=hub.url)
    assert (second.path, second.fetched) == (first.path, False)
    assert [method for method, _, _ in hub.asked] == ["GET"]


def test_without_a_hub_what_was_pulled_is_taken_and_told(hub: FakeHub, path: Path) -> None:
    push(path, "user/pets", license="mit", endpoint=hub.url)
    first = pull("user/pets", endpoint=hub.url)
    hub.close()
    with pytest.warns(UserWarning, match=f"cannot be reached.*taken: user/pets@{first.commit}"):
        assert pull("user/pets", endpoint=hub.url).path == first.path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pull("user/pets", endpoint=hub.url, offline=True).path == first.path
        assert pull(f"user/pets@{first.commit}", endpoint=hub.url).path == first.path
    with pytest.raises(UnreachableError, match="cannot be reached"):
        pull("user/others", endpoint=hub.url)
    with pytest.raises(HubError, match="was not pulled before"):
        pull("user/others", endpoint=hub.url, offline=True)
    assert torch.equal(
        tvc_core.load(first).state_dict()["features.0.weight"],
        tvc_core.load(path).state_dict()["features.0.weight"],
    )


def test_a_commit_that_is_here_is_not_asked_for(hub: FakeHub, path: Path) -> None:
    commit = hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    pull(f"user/pets@{commit}", endpoint=hub.url)
    hub.asked.clear()
    assert not pull(f"user/pets@{commit}", endpoint=hub.url).fetched
    assert not hub.asked


def test_a_commit_is_one_in_capitals_as_well(hub: FakeHub, path: Path) -> None:
    commit = hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    assert pull(f"user/pets@{commit.upper()}", endpoint=hub.url).commit == commit
    hub.asked.clear()
    assert not pull(f"user/pets@{commit.upper()}", endpoint=hub.url).fetched
    assert not hub.asked


def test_a_file_that_was_named_is_not_taken_for_the_model(hub: FakeHub, path: Path) -> None:
    model = path.read_bytes()
    commit = hub.put("user/many", {"model.safetensors": model, "teacher.safetensors": model})
    name = f"user/many@{commit}"
    named = pull(name, endpoint=hub.url, file="teacher.safetensors")
    with pytest.raises(HubError, match="was not pulled before"):
        pull(name, endpoint=hub.url, offline=True)
    found = pull(name, endpoint=hub.url)
    assert (named.path.name, found.path.name) == ("teacher.safetensors", "model.safetensors")
    assert pull(name, endpoint=hub.url, offline=True).path == found.path
    assert pull(name, endpoint=hub.url, offline=True, file="teacher.safetensors") == replace(
        named, fetched=False
    )


def test_a_second_pull_knows_the_callers_plugins(hub: FakeHub, tmp_path: Path) -> None:
    plugin = LocalPlugin("acme")
    plugin.add(
        BlockSpec(name="still", category="other", factory="torch.nn:Identity", summary="For tests.")
    )
    builder = HybridBuilder(plugins=[plugin])
    model = builder.from_backbone(
        "squeezenet1_1", None, patches={"features.12": {"wrap": "acme:still"}}, num_classes=2
    )
    file = tmp_path / "own.safetensors"
    model.save(file)
    hub.put("user/own", {"model.safetensors": file.read_bytes()})
    for fetched in (True, False):
        found = pull("user/own", endpoint=hub.url, registry=builder.registry)
        assert found.fetched is fetched


@pytest.mark.parametrize("branch", ["v1.0", "feature/x", "refs/pr/1", "0a1b2c3", "a_b-c+d"])
def test_a_revision_is_asked_for_as_it_is_written(hub: FakeHub, path: Path, branch: str) -> None:
    hub.tags[branch] = hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    hub.put("user/pets", {"README.md": b"newer"})
    assert pull(f"user/pets@{branch}", endpoint=hub.url).commit == hub.tags[branch]


def test_a_branch_that_moves_is_told(hub: FakeHub, path: Path) -> None:
    model = path.read_bytes()
    old = hub.put("user/pets", {"model.safetensors": model})
    pull("user/pets", endpoint=hub.url)
    new = hub.put("user/pets", {"model.safetensors": model, "README.md": b"new"})
    hub.tags["v1"] = old
    moved = pull("user/pets@main", endpoint=hub.url)
    assert (moved.commit, moved.before) == (new, old)
    assert pull("user/pets@v1", endpoint=hub.url).commit == old


def test_a_copy_that_is_damaged_is_fetched_again(hub: FakeHub, path: Path) -> None:
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    first = pull("user/pets", endpoint=hub.url)
    data = bytearray(first.path.read_bytes())
    data[-3] ^= 1
    first.path.write_bytes(data)
    again = pull("user/pets", endpoint=hub.url)
    assert again.fetched
    assert again.path.read_bytes() == path.read_bytes()


def test_a_copy_is_written_where_it_is_wanted(hub: FakeHub, path: Path) -> None:
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    out = path.with_name("here.safetensors")
    assert pull("user/pets", endpoint=hub.url, out=out).path == out
    assert out.read_bytes() == path.read_bytes()
    hub.asked.clear()
    with pytest.raises(ParameterError, match=r"here\.safetensors exists: --force"):
        pull("user/pets", endpoint=hub.url, out=out)
    with pytest.raises(ParameterError, match=r"the folder .* does not exist"):
        pull("user/pets", endpoint=hub.url, out=path.parent / "no" / "x.safetensors")
    with pytest.raises(ParameterError, match=r"does not end in \.safetensors"):
        pull("user/pets", endpoint=hub.url, out=path.parent / "x.pth")
    if Path("/proc/self").is_dir():  # where root cannot write either
        with pytest.raises(ParameterError, match=r"'/proc/self' cannot be written to"):
            pull("user/pets", endpoint=hub.url, out="/proc/self/x.safetensors")
    assert not hub.asked
    out.write_bytes(b"old")
    pull("user/pets", endpoint=hub.url, out=out, force=True)
    assert out.read_bytes() == path.read_bytes()


def test_parameters_are_counted_by_the_header(hub: FakeHub, path: Path) -> None:
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    count = sum(p.numel() for p in tvc_core.load(path).parameters())
    with pytest.raises(WeightsError, match=f"{count:,} parameters, more than max_params="):
        pull("user/pets", endpoint=hub.url, max_params=count - 1)
    sent = sum(hub.sent.values())
    assert sent == 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert pull("user/pets", endpoint=hub.url, max_params=count).fetched
    with pytest.raises(WeightsError, match="more than max_params="):  # of what is here as well
        pull("user/pets", endpoint=hub.url, max_params=count - 1)


def test_buffers_are_no_parameters(hub: FakeHub, tmp_path: Path) -> None:
    from tvc_core import HybridBuilder

    path = tmp_path / "swin.safetensors"  # with an index among its buffers
    model = HybridBuilder().from_backbone("mobilenet_v3_small", weights=None, num_classes=2)
    model.save(path)
    assert sum(b.numel() for b in model.buffers())
    hub.put("user/net", {"model.safetensors": path.read_bytes()})
    assert pull("user/net", endpoint=hub.url, max_params=model.count_parameters()).fetched


def test_one_file_is_taken_from_a_repository_of_others(hub: FakeHub, path: Path) -> None:
    model = path.read_bytes()
    hub.put("user/many", {"a.safetensors": model, "x/b.safetensors": model, "train.py": b"1"})
    with pytest.raises(HubError, match=r"train.py.*--file a.safetensors"):
        pull("user/many", endpoint=hub.url)
    assert pull("user/many", endpoint=hub.url, file="x/b.safetensors").path.read_bytes() == model
    with pytest.raises(HubError, match=r"no file 'c\.safetensors'"):
        pull("user/many", endpoint=hub.url, file="c.safetensors")
    with pytest.raises(HubError, match=r"is no \.safetensors file"):
        pull("user/many", endpoint=hub.url, file="train.py")


@pytest.mark.parametrize(
    "name",
    ["pets", "a/b/c", "../x", "a/..", "a/b@", "a/b@../x y", "-a/b", "a/b--c", "a/b?x=1", "a/b#c"]
    + [f"a/b@{each}" for each in (".", "..", "x/..", "x/./y", "/x", "x//y", "x/", ".x", "a..b")]
    + [f"a/b@{each}" for each in ("@", "%2e", "\u00fc", "main\n", " main", "x" * 201)],
)
def test_a_name_that_is_none_asks_no_one(hub: FakeHub, name: str) -> None:
    with pytest.raises(HubError, match=r"no name of a repository|no revision"):
        pull(name, endpoint=hub.url)
    assert not hub.asked


@pytest.mark.parametrize(
    "url", ["huggingface.co", "ftp://x.y", "http://", "http://a:b@127.0.0.1:9", "http://x:99999"]
)
def test_an_address_that_is_none_is_refused(hub: FakeHub, url: str) -> None:
    with pytest.raises(HubError, match="no address of a hub"):
        pull("user/pets", endpoint=url)


def test_the_token_is_not_sent_in_clear_text(hub: FakeHub) -> None:
    with pytest.raises(HubError, match="in clear text"):
        pull("user/pets", endpoint="http://hub.example")


@pytest.mark.parametrize("token", ["hf_x y", "hf_\u00e9", "hf_a\nb"])
def test_a_token_that_can_be_none_is_not_sent_nor_shown(
    hub: FakeHub, path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="look at HF_TOKEN") as refused:
        pull("user/pets", endpoint=hub.url)
    assert token[:4] not in str(refused.value)
    assert not hub.asked


def test_the_token_of_a_login_goes_to_its_own_hub_alone(
    hub: FakeHub, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    pull("user/pets", endpoint=hub.url)
    assert {token for _, _, token in hub.asked} == {None}
    with pytest.raises(HubError, match=r"401: the hub .* wants a token"):
        push(path, "user/pets", license="mit", endpoint=hub.url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    assert push(path, "user/pets", license="mit").repository == "user/pets"


def test_a_hub_that_says_little_is_enough(hub: FakeHub, path: Path) -> None:
    """Names of files, and what stands in the headers of an answer."""
    commit = hub.put("user/pets", {"model.safetensors": path.read_bytes()})

    def names(handler: Handler) -> bool:
        if "/revision/" not in handler.path:
            return False
        handler.json({"sha": commit, "siblings": [{"rfilename": "model.safetensors"}]})
        return True

    hub.faults.append(names)
    assert pull("user/pets", endpoint=hub.url).path.read_bytes() == path.read_bytes()


def test_what_is_pulled_is_what_was_saved(hub: FakeHub, path: Path) -> None:
    push(path, "user/pets", license="mit", endpoint=hub.url)
    content, tensors = taken_apart(pull("user/pets", endpoint=hub.url).path.read_bytes())
    assert content["metadata"] == {"accuracy": 0.93, "data": "pets, spring"}
    assert tensors["patches.features.6.eca.alpha"].item() == pytest.approx(-0.7)
