"""Content Credentials (C2PA 2.2): a signed statement in the file of who made it, how, and from what.

Nothing is fetched from elsewhere when a file is read, and no thumbnails are written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.provenance.certificates import need_extra
from headrace.provenance.fingerprint import to_iscc
from headrace.provenance.metadata import source_type

if TYPE_CHECKING:
    from headrace.provenance.certificates import Signer
    from headrace.recipe import Recipe

WATERMARK_ALGORITHM = "headrace.rivagan.1"
"""The soft binding of `watermark`; not in C2PA's list of algorithms, as the fingerprint's is."""

FINGERPRINT_ALGORITHM = "io.iscc.v0"

MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
}

_CREATED, _OPENED, _EDITED, _WATERMARKED = "c2pa.created", "c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound"
_UNTRUSTED = "signingCredential.untrusted"
_SETTINGS: Mapping[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Ingredient:
    """A file from which a picture was made: its bytes, format (of `MEDIA_TYPES`) and title; whether it was edited."""

    data: bytes
    file_format: str
    title: str
    edited: bool = False


@dataclass(frozen=True)
class Signature:
    """What a file's Content Credentials say, and whether that can be believed.

    state: "trusted" where a given authority vouches for the signer, "valid" where nobody does, "broken" where the file
    is not what was signed. problems: C2PA's codes of what is wrong. organisation, name: of the signer's certificate.
    time: ISO 8601, only where a time authority said it. made_by: the program. source_types: IPTC's, of what was done.
    actions: C2PA's labels in order. ingredients: what it was made from, as its title, how ("parentOf" was edited,
    "inputTo" was looked at) and whether its own credentials hold (None without any). bindings: algorithm and value of
    each watermark or fingerprint declared.
    """

    state: str
    problems: tuple[str, ...]
    organisation: str
    name: str
    time: str
    made_by: str
    source_types: tuple[str, ...]
    actions: tuple[str, ...]
    ingredients: tuple[tuple[str, str, bool | None], ...]
    bindings: tuple[tuple[str, str], ...]


def sign_picture(
    data: bytes,
    file_format: str,
    recipe: Recipe,
    signer: Signer,
    ingredients: Sequence[Ingredient],
    identifier: int | None,
    fingerprint: int,
    private: bool = False,
) -> bytes:
    """The file with Content Credentials signed last; arguments as for `mark`.

    Raises RequestError where the extra `provenance` is missing, and HeadraceError where the signer fails.
    """
    need_extra()
    import c2pa

    manifest, labelled = _manifest(recipe, ingredients, identifier, fingerprint, private)
    signed = io.BytesIO()
    try:
        algorithm = c2pa.C2paSigningAlg[signer.algorithm.upper()]
        with (
            c2pa.Context.from_dict(dict(_SETTINGS)) as context,
            c2pa.Signer.from_callback(signer.sign, algorithm, signer.certificates, signer.time_authority) as native,
            c2pa.Builder(manifest, context=context) as builder,
        ):
            for description, ingredient in labelled:
                builder.add_ingredient(description, MEDIA_TYPES[ingredient.file_format], io.BytesIO(ingredient.data))
            builder.sign(native, MEDIA_TYPES[file_format], io.BytesIO(data), signed)
    except (c2pa.C2paError, KeyError) as error:
        raise HeadraceError(f"The picture could not be signed ({error}).") from error
    return signed.getvalue()


def _manifest(
    recipe: Recipe, ingredients: Sequence[Ingredient], identifier: int | None, fingerprint: int, private: bool
) -> tuple[dict[str, Any], list[tuple[dict[str, str], Ingredient]]]:
    """What is to be signed, and how each ingredient is described in it."""
    agent = {"name": "headrace", "version": recipe.version}
    labelled = [
        (
            {
                "title": f"picture {number}" if private else ingredient.title,
                "relationship": "parentOf" if ingredient.edited else "inputTo",
                "instance_id": f"headrace:ingredient:{number}",
                "label": f"headrace-{number}",
            },
            ingredient,
        )
        for number, ingredient in enumerate(ingredients, start=1)
    ]
    parents = [description["label"] for description, ingredient in labelled if ingredient.edited]
    inputs = [description["label"] for description, ingredient in labelled if not ingredient.edited]
    made = {"softwareAgent": agent, "digitalSourceType": source_type(recipe)}
    seen: dict[str, Any] = {"parameters": {"ingredientIds": inputs}} if inputs else {}
    if parents:
        actions = [
            {"action": _OPENED, "parameters": {"ingredientIds": parents}},
            {"action": _EDITED, **made, **seen},
        ]
    else:
        actions = [{"action": _CREATED, **made, **seen}]
    bindings = [{"alg": FINGERPRINT_ALGORITHM, "blocks": [{"scope": {}, "value": to_iscc(fingerprint)}]}]
    if identifier is not None:
        actions.append({"action": _WATERMARKED, "softwareAgent": agent})
        bindings.insert(0, {"alg": WATERMARK_ALGORITHM, "blocks": [{"scope": {}, "value": f"{identifier:04x}"}]})
    manifest = {
        "claim_generator_info": [agent],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            *({"label": "c2pa.soft-binding", "data": binding} for binding in bindings),
        ],
    }
    return manifest, labelled


def read_signature(data: bytes, file_format: str, authorities: str = "") -> Signature | None:
    """What the file's Content Credentials say, or None where it has none.

    authorities: certificates in PEM of those who may vouch for a signer. Raises RequestError where the extra
    `provenance` is missing.
    """
    need_extra()
    import c2pa

    settings = {**_SETTINGS, "verify": {**_SETTINGS["verify"], "verify_trust": bool(authorities)}}
    if authorities:
        settings["trust"] = {"trust_anchors": authorities}
    try:
        with c2pa.Context.from_dict(settings) as context:
            reader = c2pa.Reader.try_create(MEDIA_TYPES[file_format], io.BytesIO(data), context=context)
            if reader is None:
                return None
            with reader:
                state, document = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        problem = " ".join(str(error).split())[:200]
        return Signature("broken", (problem,), "", "", "", "", (), (), (), ())
    return _signature(str(state), document)


def _signature(state: str, document: Mapping[str, Any]) -> Signature:
    manifest = document["manifests"][document["active_manifest"]]
    results = document.get("validation_results", {}).get("activeManifest", {})
    signed = manifest.get("signature_info", {})
    assertions: Sequence[Mapping[str, Any]] = manifest.get("assertions", ())
    actions = [
        action
        for assertion in assertions
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"].get("actions", ())
    ]
    bindings = [
        (str(assertion["data"].get("alg", "")), str(block.get("value", "")))
        for assertion in assertions
        if assertion["label"].startswith("c2pa.soft-binding")
        for block in assertion["data"].get("blocks", ())
    ]
    programs = manifest.get("claim_generator_info") or [{}]
    return Signature(
        state={"Trusted": "trusted", "Valid": "valid"}.get(state, "broken"),
        problems=tuple(str(failure.get("code", "")) for failure in results.get("failure", ())),
        organisation=str(signed.get("issuer", "")),
        name=str(signed.get("common_name", "")),
        time=str(signed.get("time") or ""),
        made_by=" ".join(str(programs[0].get(part, "")) for part in ("name", "version")).strip(),
        source_types=tuple(str(action["digitalSourceType"]) for action in actions if "digitalSourceType" in action),
        actions=tuple(str(action.get("action", "")) for action in actions),
        ingredients=tuple(map(_ingredient, manifest.get("ingredients", ()))),
        bindings=tuple(bindings),
    )


def _ingredient(ingredient: Mapping[str, Any]) -> tuple[str, str, bool | None]:
    results = (ingredient.get("validation_results") or {}).get("activeManifest", {})
    codes = {failure.get("code") for failure in results.get("failure", ())}
    own = None if "active_manifest" not in ingredient else codes <= {_UNTRUSTED}
    return str(ingredient.get("title", "")), str(ingredient.get("relationship", "")), own
