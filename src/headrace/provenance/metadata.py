"""The recipe inside the picture file, and the statement that a model made it.

| file | recipe as JSON (the truth) | recipe for other tools | "made by a model" |
|---|---|---|---|
| PNG | iTXt `headrace` | tEXt or iTXt `parameters` | XMP, EXIF Software and Make |
| JPEG, WebP | XMP `headrace:recipe` | EXIF UserComment | XMP, EXIF Software and Make |

`parameters` is the line that AUTOMATIC1111's web UI writes and most galleries read. The XMP carries IPTC's digital
source type (https://cv.iptc.org/newscodes/digitalsourcetype/) and AI system properties (IPTC Photo Metadata 2025.1);
the EXIF names the program in the tags in which Black Forest Labs' own command line does. A private file has neither
recipe nor model, only the statement that it was made by a model.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from headrace import __version__
from headrace.errors import RequestError
from headrace.pictures import (
    MAX_FILE_BYTES,
    check_output,
    encode_picture,
    open_bounded,
    picture_format,
    read_file,
    write_file,
)
from headrace.recipe import LoraRecord, Recipe

if TYPE_CHECKING:
    from PIL import Image

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DIGITAL_SOURCE_TYPE = _SOURCE_TYPES + "trainedAlgorithmicMedia"
EDITED_SOURCE_TYPE = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
MAX_RECIPE_BYTES = 2**20

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMESPACE = "urn:headrace:recipe:1#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TEXT_KEY = "headrace"
_PNG_XMP = "XML:com.adobe.xmp"

_EXIF_MAKE = 0x010F
_EXIF_SOFTWARE = 0x0131
_EXIF_IFD = 0x8769
_EXIF_USER_COMMENT = 0x9286

# A JPEG segment holds 65,533 bytes; EXIF and XMP get one each, of which this much is for text.
_JPEG_TEXT_BYTES = 64_000


def save_picture(image: Image.Image, recipe: Recipe, path: str | os.PathLike[str]) -> Path:
    """Write a picture with its recipe inside, whole or not at all, and return the path; the format goes by the ending.

    Raises RequestError where the place or ending cannot be, or the recipe is longer than a JPEG can carry, and
    HeadraceError where the disk is full.
    """
    target = check_output(path)
    write_file(target, encode_with_recipe(image, recipe, picture_format(target)))
    return target


def encode_with_recipe(image: Image.Image, recipe: Recipe, file_format: str) -> bytes:
    """The bytes of a picture file with its recipe inside; `file_format` is PNG, JPEG or WEBP."""
    document = _to_json(recipe.as_dict())
    exif = _exif(recipe)
    if file_format == "PNG":
        return encode_picture(image, file_format, {"pnginfo": _png_text(recipe, document), "exif": exif})
    if file_format == "JPEG":
        _check_room_in_jpeg(document)
    _add_parameters(exif, recipe, limit=_JPEG_TEXT_BYTES if file_format == "JPEG" else MAX_RECIPE_BYTES)
    return encode_picture(image, file_format, {"exif": exif, "xmp": _xmp(recipe, document).encode()})


def encode_without_recipe(image: Image.Image, recipe: Recipe, file_format: str) -> bytes:
    """The same with no more inside than that a model made it."""
    from PIL.PngImagePlugin import PngInfo

    packet = _packet(source_type(recipe), {}, recipe.version)
    if file_format != "PNG":
        return encode_picture(image, file_format, {"exif": _exif(recipe), "xmp": packet.encode()})
    text = PngInfo()
    text.add_itxt(_PNG_XMP, packet)
    return encode_picture(image, file_format, {"pnginfo": text, "exif": _exif(recipe)})


def source_type(recipe: Recipe) -> str:
    """IPTC's digital source type: made by a model, or a picture of which a model made parts."""
    return DIGITAL_SOURCE_TYPE if recipe.edit is None else EDITED_SOURCE_TYPE


def check_prompt_fits(prompt: str, path: str | os.PathLike[str]) -> None:
    """Raises RequestError where `path` asks for a JPEG and the prompt leaves no room in it for the recipe."""
    if picture_format(path) == "JPEG":
        references = [{"sha256": "0" * 64, "width": 9999, "height": 9999}] * 16
        loras = [{"name": "-" * 64, "sha256": "0" * 64, "strength": -99.999}] * 16
        _check_room_in_jpeg(_to_json({"prompt": prompt, "references": references, "loras": loras}))


def _check_room_in_jpeg(document: str) -> None:
    if len(html.escape(document, quote=False).encode()) > _JPEG_TEXT_BYTES:
        raise RequestError("The prompt is longer than a JPEG file can carry; shorten it, or write PNG or WebP.")


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe that Headrace put into a PNG, JPEG or WebP file.

    Raises RequestError where the file is no such picture, carries no recipe, or one that was damaged.
    """
    name = f"picture {path}"
    recipe = recipe_of(open_bounded(read_file(Path(path), "picture", MAX_FILE_BYTES), name), name)
    if recipe is None:
        raise RequestError(f"The {name} carries no Headrace recipe; it was made or rewritten by something else.")
    return recipe


def recipe_of(image: Image.Image, name: str) -> Recipe | None:
    """The recipe in an opened picture, or None; `name` is what errors call it. Raises RequestError where damaged."""
    document = _embedded_json(image, name)
    if document is None:
        return None
    if len(document) > MAX_RECIPE_BYTES:
        raise RequestError(f"The recipe in the {name} is larger than {MAX_RECIPE_BYTES // 2**20} MiB.")
    try:
        values = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The recipe in the {name} is damaged: it is not JSON.") from error
    if not isinstance(values, dict):
        raise RequestError(f"The recipe in the {name} is damaged: it is not a JSON object.")
    return Recipe.from_dict(values)


def source_type_of(image: Image.Image) -> str | None:
    """The IPTC digital source type that an opened picture, whoever made it, states in its XMP; None without one."""
    packet = image.info.get("xmp") or image.info.get(_PNG_XMP)
    text = packet.decode(errors="replace") if isinstance(packet, bytes) else packet
    if not isinstance(text, str):
        return None
    try:
        return _property_in_xmp(text[: 2 * MAX_RECIPE_BYTES], f"{{{_IPTC}}}DigitalSourceType")
    except ElementTree.ParseError:
        return None


def parameters_text(recipe: Recipe) -> str:
    """The recipe as AUTOMATIC1111's web UI writes it: the prompt, then one line of `Name: value` pairs."""
    # Readers split at these words, wherever they stand.
    prompt = recipe.prompt.replace("Negative prompt:", "Negative prompt :").strip()
    names = [re.sub(r"[\s,:<>{}\"\\]+", " ", lora.name).strip() for lora in recipe.loras]
    prompt += "".join(f" <lora:{name}:{lora.strength:g}>" for name, lora in zip(names, recipe.loras, strict=True))
    values = {
        "Steps": recipe.steps,
        "Sampler": "Euler",
        "CFG scale": recipe.guidance,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.model_hash.removeprefix("sha256:")[:10],
        # Not quoted, as the web UI would: sd-parsers splits within the quotes.
        "Model": re.sub(r"[\s,:]+", " ", recipe.model).strip(),
        **({} if recipe.edit is None else {"Denoising strength": recipe.edit.strength}),
        **_lora_hashes(dict(zip(names, recipe.loras, strict=True))),
        "Version": f"headrace {recipe.version}",
    }
    return prompt + "\n" + ", ".join(f"{name}: {value}" for name, value in values.items())


def _lora_hashes(loras: Mapping[str, LoraRecord]) -> dict[str, str]:
    """Whose files they are, as model sites look them up: by the first ten digits of their SHA-256."""
    hashes = {f"lora:{name}": lora.sha256[:10] for name, lora in loras.items()}
    return {"Hashes": json.dumps(hashes)} if hashes else {}


def _to_json(values: dict[str, Any]) -> str:
    # Escaped beyond what JSON asks for: what XML cannot hold, and halves of surrogate pairs, which UTF-8 cannot.
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _png_text(recipe: Recipe, document: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", _printable(parameters_text(recipe)))
    text.add_itxt(_TEXT_KEY, document)
    text.add_itxt(_PNG_XMP, _xmp(recipe, None))
    return text


def _exif(recipe: Recipe) -> Image.Exif:
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = f"headrace {recipe.version}; AI generated"
    exif[_EXIF_MAKE] = "Headrace"
    return exif


def _add_parameters(exif: Image.Exif, recipe: Recipe, limit: int) -> None:
    text = _printable(parameters_text(recipe))
    if len(text.encode("utf-16-be")) > limit:
        prompt, values = text.rsplit("\n", 1)
        # Every character takes at most four bytes.
        text = prompt[: limit // 4 - len(values) - 4] + "...\n" + values
    exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")


def _printable(text: str) -> str:
    # What neither XML nor UTF-8 can hold becomes a space; only the JSON, which escapes it, is exact.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text)


def _xmp(recipe: Recipe, document: str | None) -> str:
    properties = _system(recipe.model, recipe.model_hash)
    if document is not None:
        properties["headrace:recipe"] = document
    return _packet(source_type(recipe), properties, recipe.version)


def generated_xmp(model: str, model_hash: str) -> str:
    """The statement that a model made a picture, for one that has no recipe, as XMP."""
    return _packet(DIGITAL_SOURCE_TYPE, _system(model, model_hash), __version__)


def _system(model: str, model_hash: str) -> dict[str, str]:
    return {"Iptc4xmpExt:AISystemUsed": model, "Iptc4xmpExt:AISystemVersionUsed": model_hash}


def _packet(source: str, properties: Mapping[str, str], version: str) -> str:
    properties = {
        "Iptc4xmpExt:DigitalSourceType": source,
        "xmp:CreatorTool": f"headrace {version}",
        **properties,
    }
    body = "".join(
        f"<{name}>{html.escape(_printable(value), quote=False)}</{name}>" for name, value in properties.items()
    )
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""'
        f' xmlns:Iptc4xmpExt="{_IPTC}" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' xmlns:headrace="{_NAMESPACE}">{body}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def _embedded_json(image: Image.Image, name: str) -> str | None:
    text = image.info.get(_TEXT_KEY)
    if isinstance(text, str):
        return text
    packet = image.info.get("xmp")
    if not isinstance(packet, bytes):
        return None
    try:
        return _property_in_xmp(packet[: 2 * MAX_RECIPE_BYTES].decode(), f"{{{_NAMESPACE}}}recipe")
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise RequestError(f"The XMP in the {name} is damaged, and with it the recipe.") from error


def _property_in_xmp(packet: str, tag: str) -> str | None:
    if "<!DOCTYPE" in packet:  # XMP has none, and with it come entities that grow without bound
        return None
    for element in ElementTree.fromstring(packet.strip("\ufeff\0 \n")).iter():
        if element.tag == tag:
            return element.text or ""
        if tag in element.attrib:  # other tools may fold a simple property into an attribute
            return element.attrib[tag]
    return None
