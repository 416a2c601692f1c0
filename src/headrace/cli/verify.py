"""`headrace verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import printable

if TYPE_CHECKING:
    from headrace.provenance.credentials import Signature
    from headrace.provenance.verdict import Verdict
    from headrace.recipe import Recipe

_FILE = click.Path(path_type=Path)
_STATES = {
    "trusted": "unbroken, and the signer is vouched for",
    "valid": "unbroken, by a signer for whom nobody known here vouches",
    "broken": "BROKEN: the file is not what was signed",
}
_ROLES = {"parentOf": "edited", "componentOf": "contained", "inputTo": "used as reference"}


@click.command()
@click.argument("picture", type=_FILE, metavar="FILE")
@click.option("--registry", type=_FILE, metavar="FILE", help="Look for the picture in a server's register too.")
@click.option(
    "--trust", type=_FILE, multiple=True, metavar="PEM", help="Certificates that may vouch for signers. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead.")
def verify(picture: Path, registry: Path | None, trust: tuple[Path, ...], as_json: bool) -> None:
    """Say where the picture in FILE came from: what it says of itself, what its pixels say, and what holds.

    \b
    headrace verify cat.png
    headrace verify found-somewhere.jpg --registry data/register.sqlite

    Nothing is fetched from elsewhere. The exit code is 1 where a signature is broken or marks contradict each other; a
    picture without any mark is no error, and no proof of anything.
    """
    from headrace.provenance.verdict import verify as look_into

    verdict = look_into(picture, registry, trust)
    if as_json:
        click.echo(json.dumps(verdict.as_dict()))
    else:
        for line in _lines(verdict):
            click.echo(printable(line))
    if verdict.broken:
        click.get_current_context().exit(1)


def _lines(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.path}: {verdict.width}x{verdict.height}"]
    stated = "nothing" if verdict.source_type is None else verdict.source_type.rsplit("/", 1)[-1]
    lines.append(f"metadata: source type {stated}" if verdict.source_type else "metadata: no statement of its source")
    if verdict.signature is not None:
        lines += _signature(verdict.signature)
    else:
        lines.append(f"signature: {verdict.signature_problem or 'none'}")
    if verdict.watermark is not None:
        named = {None: "", True: ", which is this recipe's", False: ", which is not this recipe's"}
        lines.append(
            f"watermark: {verdict.watermark.identifier:04x}{named[verdict.watermark_names_recipe]} "
            f"({verdict.watermark.wrong_bits} of 64 bits wrong, at scale {verdict.watermark.scale:g})"
        )
    else:
        lines.append(f"watermark: {verdict.watermark_problem or 'none found'}")
    if verdict.bfl_watermark:
        lines.append("watermark: that of Black Forest Labs' command line")
    lines.append(f"fingerprint: {verdict.fingerprint}")
    lines += _recipe(verdict.recipe) if verdict.recipe else [f"recipe: {verdict.recipe_problem or 'none'}"]
    for match in verdict.matches or ():
        marks = ", and the watermark agrees" if match.same_mark else ""
        lines.append(
            f"register: {match.entry.name}, made {match.entry.made_at} ({match.distance} of 64 bits differ{marks})"
        )
        if match.entry.recipe is not None and verdict.recipe is None:
            lines += [f"  {line}" for line in _recipe(match.entry.recipe)]
    if verdict.matches == ():
        lines.append("register: not found")
    return lines + list(verdict.disagreements)


def _signature(signature: Signature) -> list[str]:
    name = signature.name or signature.organisation or "somebody unknown"
    lines = [f"signature: {_STATES[signature.state]}", f"  by {name}, with {signature.made_by or 'an unknown program'}"]
    if signature.time:
        lines.append(f"  at {signature.time}")
    for title, role, holds in signature.ingredients:
        own = {None: "", True: ", whose own signature holds", False: ", whose own signature is broken"}[holds]
        lines.append(f"  {_ROLES.get(role, role)}: {title}{own}")
    lines += [f"  {problem}" for problem in signature.problems]
    return lines


def _recipe(recipe: Recipe) -> list[str]:
    made = (
        f"recipe: {recipe.model} ({recipe.model_hash[:23]}...), {recipe.precision}, {recipe.width}x{recipe.height}, "
        f"{recipe.steps} steps, guidance {recipe.guidance:g}, seed {recipe.seed}, headrace {recipe.version}"
    )
    lines = [made, f"  prompt: {recipe.prompt}"]
    if recipe.edit is not None:
        lines.append(f"  edit of a picture whose pixels have the SHA-256 {recipe.edit.source_sha256}")
    lines += [f"  image {number}: pixels' SHA-256 {used.sha256}" for number, used in enumerate(recipe.references, 1)]
    return lines + [f"  LoRA {lora.name} at {lora.strength:g}" for lora in recipe.loras]
