"""The commands that this plugin adds to `tvc`. Each collects its facts first, then prints them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["pull_command", "push_command"]

F = TypeVar("F", bound=Callable[..., Any])


def _hub_options(command: F) -> F:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--host",
            "hosts",
            multiple=True,
            metavar="HOST",
            help="Another host that the hub keeps files at, over https; it gets no token. May be "
            "repeated.",
        ),
        click.option(
            "--endpoint",
            metavar="URL",
            help="Address of the hub; default HF_ENDPOINT, or https://huggingface.co.",
        ),
    ):
        command = option(command)
    return command


@click.command("push")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--license", default="", help="Of the model, such as apache-2.0. Must be given.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=VALUE",
    help="A figure for the card, as it is: accuracy=0.93. May be repeated.",
)
@click.option(
    "--with",
    "extra",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another file that goes with it, such as a certificate. May be repeated.",
)
@click.option("--message", help="Of the commit.")
@click.option("--private", is_flag=True, default=None, help="Show a new repository to you alone.")
@click.option(
    "--force", is_flag=True, help="Push although the license contradicts that of the weights."
)
@_hub_options
def push_command(
    file: Path,
    name: str,
    license: str,
    metrics: tuple[str, ...],
    extra: tuple[Path, ...],
    message: str | None,
    private: bool | None,
    force: bool,
    endpoint: str | None,
    hosts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put the saved model FILE on a hub, into the repository NAME, which is user/name: the model,
    recipe.yaml, its *.certificate.json that lie beside it, and a card that is written from facts.

    The token is that of HF_TOKEN, or of a login by 'hf auth login'.
    """
    from .pushing import push

    done = push(
        file,
        name,
        license=license,
        metrics=_metrics(metrics),
        extra=extra,
        message=message,
        private=private,
        force=force,
        endpoint=endpoint,
        hosts=hosts,
    )
    if as_json:
        click.echo(json.dumps(vars(done), indent=1))
        return
    click.echo(f"pushed {done.repository}@{done.commit}: {', '.join(done.files)}")
    click.echo(done.url)
    for name, why in done.left_out.items():
        click.echo(f"left out: {name}: {why}", err=True)


@click.command("pull")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a copy to this .safetensors file.",
)
@click.option("--force", is_flag=True, help="Let --out take the place of a file that exists.")
@click.option(
    "--file", help="The model's file in the repository, of which no other is looked at then."
)
@click.option(
    "--max-params",
    type=click.IntRange(min=0),
    help="Refuse a model with more parameters, by its header alone.",
)
@click.option("--offline", is_flag=True, help="Ask no one; take what was pulled before.")
@_hub_options
def pull_command(
    name: str,
    out: Path | None,
    force: bool,
    file: str | None,
    max_params: int | None,
    offline: bool,
    endpoint: str | None,
    hosts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fetch a model from a hub and print where it is. NAME is user/name or user/name@revision: a
    branch, a tag or a commit.

    Its header is fetched first and compared with the network that its recipe names. Nothing in it
    is run.
    """
    from .pulling import pull

    done = pull(
        name,
        out=out,
        force=force,
        file=file,
        max_params=max_params,
        offline=offline,
        endpoint=endpoint,
        hosts=hosts,
    )
    if as_json:
        click.echo(json.dumps({**vars(done), "path": str(done.path)}, indent=1))
        return
    if done.before not in (None, done.commit):
        click.echo(f"{name} was at {done.before} before", err=True)
    how = "pulled" if done.fetched else "was here already:"
    click.echo(f"{how} {done.repository}@{done.commit}", err=True)
    click.echo(str(done.path))


def _metrics(texts: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in map(_metric, texts):
        if name in found:
            raise click.UsageError(f"--metric {name}= is given twice")
        found[name] = value
    return found


def _metric(text: str) -> tuple[str, Any]:
    """Return name and value of what stands after --metric: a number where it is one."""
    name, equals, value = (each.strip() for each in text.partition("="))
    if not equals or not name:
        raise click.UsageError(f"--metric takes NAME=VALUE, such as accuracy=0.93, not {text!r}")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return name, value
    return name, found if isinstance(found, (int, float)) else value
