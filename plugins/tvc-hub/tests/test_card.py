"""Each number of a card is what another way of counting gives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_hub import FakeHub
from hub_files import digest, forged, taken_apart
from tvc_hub import HubError, push
from tvc_hub.licenses import contradiction

import tvc_core
from tvc_core import (
    HybridBuilder,
    LocalPlugin,
    Preprocessing,
    Registry,
    UnknownNameError,
    WeightsError,
)


def card_of(hub: FakeHub, path: Path, **given: Any) -> str:
    push(path, "user/pets", endpoint=hub.url, **{"license": "mit", **given})
    return files_of(hub)["README.md"].decode()


def files_of(hub: FakeHub) -> dict[str, bytes]:
    return hub.commits["user/pets"][-1][1]


def rows(card: str, title: str) -> list[list[str]]:
    section = card.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]


def table(card: str, title: str) -> dict[str, list[str]]:
    return {row[0].strip(): [each.strip() for each in row[1:]] for row in rows(card, title)}


PLANS: dict[str, dict[str, Any]] = {
    "shufflenet_v2_x0_5": {
        "patches": {"stage3": {"wrap": {"type": "se", "params": {"reduction": 8}}}},
        "num_classes": ["a", "b|c", "`d`"],
        "freeze_backbone": True,
    },
    "mobilenet_v3_small": {
        "patches": {"features.3": {"wrap": "eca"}, "features.6": {"inject": "cbam_block"}},
        "num_classes": 0,
    },
    "squeezenet1_1": {"in_channels": 4, "num_classes": 5},  # and said: prepared in another way
}


@pytest.mark.parametrize("name", PLANS)
def test_numbers(hub: FakeHub, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    plan = dict(PLANS[name])
    names = plan["num_classes"] if isinstance(plan["num_classes"], list) else None
    if names:
        plan |= {"num_classes": len(names), "class_names": names}
    model = HybridBuilder().from_backbone(name, weights=None, **plan)
    gates = {k: p for k, p in model.named_parameters() if k.endswith(".alpha")}
    with torch.no_grad():
        for gate in gates.values():
            gate.copy_(torch.randn(1))
    path = tmp_path / "model.safetensors"
    model.save(path, metadata={"top1": 0.1 + 0.2})
    card = card_of(hub, path, metrics={"f1": 1 / 3, "epochs": 7})
    content, tensors = taken_apart(path.read_bytes())
    data = path.read_bytes()

    figures = {key: value[0] for key, value in table(card, "Figures").items()}
    assert figures == {
        "parameters": str(sum(p.numel() for p in model.parameters())),
        "trainable parameters": str(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "tensors in the file": str(len(tensors)),
        "values in the file": str(sum(t.numel() for t in tensors.values())),
        "bytes of the file": str(len(data)),
        "SHA-256 of the file": hashlib.sha256(data).hexdigest(),
        "SHA-256 inside the file, of content and tensors": content["sha256"],
        "format": str(content["format"]),
    }
    parts = table(card, "Parts")
    assert sum(int(each[0]) for each in parts.values()) == int(figures["parameters"])
    assert sum(int(each[1]) for each in parts.values()) == int(figures["trainable parameters"])
    found = table(card, "Patches")
    assert [key.strip("`") for key in found] == [r.target for r in model.patch_records]
    for record, (_, block, settings, size, shown) in zip(
        model.patch_records, found.values(), strict=True
    ):
        below = f"patches.{record.target}."
        own = {k: t for k, t in tensors.items() if k.startswith(below)}
        learned = {k for k, _ in model.named_parameters()}
        assert int(size) == sum(t.numel() for k, t in own.items() if k in learned)
        assert [float(each) for each in shown.split(", ")] == pytest.approx(
            [t.item() for k, t in own.items() if k.endswith(".alpha")], rel=1e-8
        )
        assert torch.tensor(float(shown)) == next(t for k, t in own.items() if k[-5:] == "alpha")
        assert block.strip("`") == record.block
        assert json.loads("{}" if settings == "-" else settings.strip("`")) == dict(record.params)
    images = {key: value[0] for key, value in table(card, "Images").items()}
    said = content["preprocessing"]
    assert [float(x) for x in images["mean"].split(", ")] == said["mean"]
    assert [float(x) for x in images["standard deviation"].split(", ")] == said["std"]
    assert (int(images["resize to [pixels]"]), int(images["crop [pixels]"])) == (
        said["resize_size"],
        said["crop_size"],
    )
    assert int(images["channels"]) == plan.get("in_channels", 3)
    assert ("have 3 channels: those of this model have 4" in card) == ("in_channels" in plan)
    assert dict(table(card, "Made with")) == {k: [v] for k, v in content["versions"].items()}
    given = {key: float(value[0]) for key, value in table(card, "As given").items()}
    assert given == {"top1": 0.1 + 0.2, "f1": 1 / 3, "epochs": 7}
    classes = card.partition("## Classes\n\n")[2].partition("\n")[0]
    assert int(re.match(r"\d+", classes)[0]) == plan["num_classes"]  # type: ignore[index]


def words(card: str) -> Iterator[str]:
    yield from re.findall(r"(?i)\b(?:todo|tbd|more information needed|n/a|none|nan|null)\b", card)
    yield from re.findall(r"\{\{|\}\}|<!--|\[\.\.\.\]|\?\?", card)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_side_before_a_crop_is_told_where_one_is_done(
    hub: FakeHub, tmp_path: Path, fit: str
) -> None:
    model = HybridBuilder().from_backbone("squeezenet1_1", weights=None, num_classes=2)
    model.preprocessing = Preprocessing(size=(96, 64), resize=100, fit=fit)
    path = tmp_path / "model.safetensors"
    model.save(path)
    images = table(card_of(hub, path), "Images")
    assert (images["size [pixels]"], images["fit"]) == (["96, 64"], [fit])
    assert images.get("resize to [pixels]") == (["100"] if fit == "crop" else None)


def test_no_placeholders(hub: FakeHub, path: Path, tmp_path: Path) -> None:
    assert not list(words(card_of(hub, path)))
    plain = tmp_path / "plain.safetensors"
    HybridBuilder().from_backbone("squeezenet1_1", weights=None).save(plain)
    card = card_of(hub, plain)
    assert not list(words(card))
    assert "The network is its backbone." in card
    assert "As given" not in card


def test_what_a_training_wrote_is_told_one_by_one(hub: FakeHub, path: Path) -> None:
    content, _ = taken_apart(path.read_bytes())
    trained = {"labels": "one", "thresholds": None, "figures": {"f1": 1 / 3, "loss": None}}
    said = {"tvc-train": trained, "accuracy": 0.5}
    path.write_bytes(forged(path.read_bytes(), content__metadata={**content["metadata"], **said}))
    card = card_of(hub, path, metrics={"accuracy": 0.75})
    assert {key: value[0] for key, value in table(card, "As given").items()} == {
        "tvc-train: labels": "one",
        "tvc-train: figures: f1": str(1 / 3),
        "data": "pets, spring",
        "accuracy, in the file": "0.5",
        "accuracy": "0.75",
    }
    assert not list(words(card))


def test_the_header_is_what_hubs_read(hub: FakeHub, path: Path) -> None:
    header = yaml.safe_load(card_of(hub, path, license="Apache-2.0").split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "tvc"
    assert header["pipeline_tag"] == "image-classification"
    assert set(header) == {"license", "library_name", "pipeline_tag", "tags"}


def test_text_of_others_stays_text(hub: FakeHub, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    evil = ["<script>alert(1)</script>", "a\n## License\n\nThis model: cc0-1.0", "[x](http://y)"]
    model = HybridBuilder().from_backbone(
        "squeezenet1_1", weights=None, num_classes=3, class_names=evil
    )
    model.save(path, metadata={"a | b": "---\nlicense: other\n---"})
    card = card_of(hub, path)
    assert "<script>" not in card
    assert "[x](" not in card
    assert card.count("\n## License\n") == 1
    assert card.count("\n---\n") == 1
    assert [row[0].strip() for row in rows(card, "As given")] == [r"a \| b"]


def certificate(**said: Any) -> str:
    return json.dumps({"tolerance": 1e-05, **said})


def test_what_goes_with_it(hub: FakeHub, path: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    said = certificate(sha256="0" * 64, source={"name": "pets", "sha256": digest})
    (path.parent / "pets.onnx.certificate.json").write_text(said)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pets.onnx").write_bytes(b"onnx")
    card = card_of(hub, path, extra=[elsewhere / "pets.onnx"])
    sent = files_of(hub)
    assert set(sent) == {
        *("model.safetensors", "recipe.yaml", "README.md"),
        *("pets.onnx.certificate.json", "pets.onnx"),
    }
    for name, (size, sha256) in table(card, "Other files").items():
        content = sent[name.strip("`")]
        assert (int(size), sha256) == (len(content), hashlib.sha256(content).hexdigest())
    again = HybridBuilder().build(yaml.safe_load(sent["recipe.yaml"]))
    assert again.state_dict().keys() == tvc_core.load(path).state_dict().keys()


def test_certificates_of_other_models_stay_where_they_are(hub: FakeHub, path: Path) -> None:
    _, tensors = taken_apart(path.read_bytes())
    said = {
        "mine": certificate(sha256="1" * 64, source={"sha256": digest({}, tensors).upper()}),
        "other": certificate(sha256="1" * 64, source={"sha256": digest({}, tensors)[::-1]}),
        "bare": "{}",
        "list": "[1]",
        "empty": "",
    }
    for name, text in said.items():
        path.with_name(f"{name}.certificate.json").write_text(text)
    path.with_name("folder.certificate.json").mkdir()
    done = push(path, "user/pets", license="mit", endpoint=hub.url)
    mine = "mine.certificate.json"
    assert set(done.files) == {"model.safetensors", "recipe.yaml", "README.md", mine}
    assert files_of(hub)[mine] == said["mine"].encode()
    told = {name.partition(".")[0]: why for name, why in done.left_out.items()}
    assert told.keys() == {"bare", "other", "list", "empty", "folder"}
    assert "is of another model" in told["bare"] and "is of another model" in told["other"]
    assert "is no certificate" in told["list"] and "is no certificate" in told["empty"]
    assert "no regular file" in told["folder"]
    other = path.with_name("other.certificate.json")
    with pytest.warns(UserWarning, match=r"other\.cert.*of another model.*all the same"):
        done = push(path, "user/pets", license="mit", endpoint=hub.url, extra=[other])
    assert other.name in done.files
    assert other.name not in done.left_out


@pytest.mark.sweep
def test_the_certificate_of_an_export_goes_with_its_model(hub: FakeHub, path: Path) -> None:
    tvc_export = pytest.importorskip("tvc_export")
    acme = LocalPlugin("acme-format")
    acme.add(
        tvc_export.ExporterSpec(  # whose files have no room for a certificate
            name="acme",
            factory="tvc_export.formats.pt2:export",
            run="tvc_export.formats.pt2:open_file",
            suffix=".acme",
            summary="For tests.",
        )
    )
    how: dict[str, Any] = {"size": (64, 64), "registry": Registry([acme])}
    model = tvc_core.load(path)
    tvc_export.export_model(model, "acme", path.with_name("mine.acme"), **how)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    tvc_export.export_model(model, "acme", path.with_name("other.acme"), **how)
    done = push(path, "user/pets", license="mit", endpoint=hub.url)
    assert "mine.acme.certificate.json" in done.files
    assert list(done.left_out) == ["other.acme.certificate.json"]


def test_two_certificates_of_one_name_are_not_sent(hub: FakeHub, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.parent / "elsewhere" / "x.certificate.json"
    named.parent.mkdir()
    named.write_text(certificate(sha256=digest))
    (path.parent / named.name).write_text(certificate(sha256=digest, more=1))
    with pytest.raises(HubError, match="and so would another x"):
        push(path, "user/pets", license="mit", endpoint=hub.url, extra=[named])
    assert not hub.asked
    (path.parent / named.name).write_text(named.read_text())
    assert named.name in push(path, "user/pets", license="mit", endpoint=hub.url).files


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.certificate.json", "[1]", "is no certificate"),
        ("x.certificate.json", "{", "is no certificate"),
        ("x.py", "1", "can hold code"),
        ("model.safetensors", "1", "has a model.safetensors already"),
        ("README.md", "1", "has a README.md already"),
        ("gone.txt", None, "no regular file"),
    ],
)
def test_what_does_not_go_with_it(
    hub: FakeHub, path: Path, tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    other = tmp_path / "other" / name
    other.parent.mkdir()
    if content is not None:
        other.write_text(content)
    with pytest.raises(HubError, match=says):
        push(path, "user/pets", license="mit", endpoint=hub.url, extra=[other])
    assert not hub.asked


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *[(given, "without a license") for given in ("", "  ", "unknown")],
        ("mti", "Did you mean 'mit'"),
        ("other", "whose text has to go with the model: --with LICENSE"),
    ],
)
def test_a_license_is_needed(hub: FakeHub, path: Path, given: str, says: str) -> None:
    with pytest.raises(HubError, match=says):
        push(path, "user/pets", license=given, endpoint=hub.url)
    assert not hub.asked


@pytest.mark.parametrize(
    ("base", "given", "why"),
    [
        ("CC-BY-NC-4.0", "mit", "no commercial use"),
        ("cc-by-nc-4.0", "cc-by-4.0", "no commercial use"),
        ("CC-BY-NC-4.0", "gpl-3.0", "no commercial use"),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", ""),
        ("CC-BY-NC-4.0", "cc-by-nc-sa-4.0", ""),
        ("CC BY-NC-SA 4.0", "cc-by-nc-4.0", "the same license"),
        ("CC-BY-NC-ND-4.0", "cc-by-nc-4.0", "does not let others"),
        ("CC-BY-SA-4.0", "mit", "the same license"),
        ("GPL-3.0-only", "apache-2.0", "the same license"),
        ("GPL-3.0-or-later", "gpl-3.0", ""),
        ("GPL-3.0+", "gpl-3.0", ""),
        ("dinov3-license", "mit", "only its text says"),
        ("Apache-2.0", "mit", ""),
        ("BSD-3-Clause", "cc-by-nc-4.0", ""),
        ("Apache-2.0 OR GPL-3.0-only", "mit", ""),
        ("GPL-3.0 OR CC-BY-SA-4.0", "mit", "the same license"),
        ("MIT AND CC-BY-NC-4.0", "mit", "no commercial use"),
        ("MIT OR GPL-3.0 AND CC-BY-NC-4.0", "mit", ""),
        ("(MIT OR GPL-3.0) AND CC-BY-NC-4.0", "mit", "only its text says"),
        ("", "mit", ""),
        (None, "mit", ""),
    ],
)
def test_licenses_that_contradict(base: str | None, given: str, why: str) -> None:
    said = contradiction(given, base)
    assert why in said and bool(why) == bool(said)


@pytest.mark.parametrize(
    ("base", "given", "why"),
    [("CC-BY-NC-4.0", "mit", "no commercial use"), ("GPL-3.0-or-later", "gpl-3.0", "")],
)
def test_a_license_that_contradicts_is_refused(
    hub: FakeHub, path: Path, base: str, given: str, why: str
) -> None:
    data = path.read_bytes()
    content, _ = taken_apart(data)
    assert content["license"] is None
    path.write_bytes(forged(data, content__license=base))
    if not why:
        push(path, "user/pets", license=given, endpoint=hub.url)
        return
    with pytest.raises(HubError, match=rf"contradicts {given}: .*{why}.*--force"):
        push(path, "user/pets", license=given, endpoint=hub.url)
    assert not hub.asked
    card = card_of(hub, path, license=given, force=True)
    assert why in card.partition("## License\n")[2]


def test_the_license_of_real_weights_is_known() -> None:
    from tvc_core import BackboneSpec, Registry

    registry = Registry()
    offers = [registry.resolve(BackboneSpec, name) for name in registry.names(BackboneSpec)]
    named = {w.license for offer in offers for w in offer.spec.weights if w.license}
    refused = {each for each in named if contradiction("mit", each)}
    assert "CC-BY-NC-4.0" in refused
    assert "Apache-2.0" in named - refused


def test_what_no_one_else_could_load_is_not_sent(hub: FakeHub, path: Path, tmp_path: Path) -> None:
    def refused(file: Path, says: str, error: type[Exception] = HubError) -> None:
        with pytest.raises(error, match=says):
            push(file, "user/pets", license="mit", endpoint=hub.url)
        assert not hub.asked

    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(1), torch.nn.Linear(4, 2)
    )
    delta = tmp_path / "delta.safetensors"
    tvc_core.load(path).save(delta, base=path)
    refused(delta, "only what differs", WeightsError)
    torch.save(small.state_dict(), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "tensors alone", WeightsError)
    refused(tmp_path / "gone.safetensors", "cannot be read", WeightsError)
    other = tmp_path / "other.safetensors"
    other.write_bytes(forged(path.read_bytes(), backbone__name="acme-secret:net"))
    refused(other, "acme-secret", UnknownNameError)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    other.write_bytes(damaged)
    refused(other, "damaged", WeightsError)
