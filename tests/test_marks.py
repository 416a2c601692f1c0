"""Watermark, metadata and signature: written in this order, found again, and not to be passed off as another's."""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from headrace.errors import HeadraceError, RequestError
from headrace.provenance import payload
from headrace.provenance.certificates import Signer, local_authority, local_signer, open_signer
from headrace.provenance.credentials import Ingredient, Signature, read_signature, sign_picture
from headrace.provenance.dwt_dct import carries_bfl_watermark
from headrace.provenance.fingerprint import fingerprint, from_iscc, hash_pixels, to_iscc
from headrace.provenance.marking import mark, recipe_identifier
from headrace.provenance.metadata import recipe_of, source_type_of
from headrace.provenance.register import Register
from headrace.provenance.verdict import verify
from headrace.provenance.watermark import embed_watermark, read_watermark
from headrace.recipe import EditRecord, Recipe

DATA = Path(__file__).parent / "data" / "provenance"

watermarks = pytest.mark.skipif(importlib.util.find_spec("imwatermark") is None, reason="needs invisible-watermark")
signatures = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("c2pa", "cryptography")), reason="needs c2pa-python"
)

RECIPE = Recipe(
    "sprite", "sha256:ab", "klein", "fp32", "a cat nobody knows", 320, 256, 4, 1.0, 7, "diffusers", 64, "0.1.0"
)
EDITED = replace(RECIPE, edit=EditRecord("0" * 64, 320, 256, "", 0, 0, 0, 0, 0.5, 4))


def photo() -> Image.Image:
    """A cat, 400x300: part of scikit-image's `chelsea`, by Stéfan van der Walt (CC0)."""
    with Image.open(DATA / "cat.webp") as image:
        return image.convert("RGB")


def drawing(seed: int = 0, width: int = 160, height: int = 128) -> Image.Image:
    """Flat colours, in which the networks see hardly anything."""
    random_source = random.Random(seed)
    image = Image.new("RGB", (width, height), "skyblue")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * 7 // 10, width, height), "seagreen")
    for color in ("crimson", "gold", "navy", "white"):
        left, top = random_source.randrange(width * 3 // 4), random_source.randrange(height * 3 // 4)
        pen.ellipse((left, top, left + width // 4, top + width // 4), color)
    return image


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def recompressed(image: Image.Image, file_format: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=quality)
    return opened(buffer.getvalue()).convert("RGB")


# The payload.


def test_words_differ_in_24_bits_and_nothing_simple_is_one() -> None:
    words = np.stack([payload.encode(identifier) for identifier in range(2**16)])
    weights = (words ^ words[0]).sum(axis=1)
    assert sorted(weights)[1] == 24
    for simple in (np.zeros(64, bool), np.ones(64, bool), np.arange(64) % 2 == 0, np.arange(64) < 32):
        assert payload.decode(simple)[1] > payload.MAX_WRONG_BITS


@given(st.integers(0, 2**16 - 1), st.sets(st.integers(0, 63), max_size=11))
@settings(deadline=None, max_examples=30)
def test_eleven_wrong_bits_are_corrected(identifier: int, wrong: set[int]) -> None:
    bits = payload.encode(identifier)
    bits[list(wrong)] ^= True
    assert payload.decode(bits) == (identifier, len(wrong))


# The watermark.


@pytest.fixture(scope="module")
def marked() -> Image.Image:
    return embed_watermark(photo(), 0xBEEF)


@watermarks
@pytest.mark.parametrize(
    "harm",
    [
        lambda image: image,
        lambda image: recompressed(image, "JPEG", 75),
        lambda image: recompressed(image, "WEBP", 80),
        lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
        lambda image: image.crop((60, 20, 60 + image.width * 4 // 5, 20 + image.height * 4 // 5)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    ],
    ids=["none", "jpeg", "webp", "half", "cut", "brighter"],
)
def test_the_watermark_outlives(harm: Callable[[Image.Image], Image.Image], marked: Image.Image) -> None:
    found = read_watermark(harm(marked))
    assert found is not None
    assert found.identifier == 0xBEEF


@watermarks
def test_the_watermark_cannot_be_seen_and_is_not_found_elsewhere(marked: Image.Image) -> None:
    error = np.asarray(marked, dtype=float) - np.asarray(photo())
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40
    assert read_watermark(photo()) is None


@watermarks
def test_small_pictures_and_drawings_carry_one() -> None:
    found = read_watermark(embed_watermark(drawing(), 3))
    assert found is not None
    assert found.identifier == 3


@watermarks
def test_a_picture_in_which_it_does_not_hold_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.provenance.watermark._CORRECTIONS", 0)
    made = mark(drawing(), RECIPE, "PNG")
    assert made.identifier is None
    assert "does not hold" in made.notes[0]
    assert np.array_equal(np.asarray(opened(made.data)), np.asarray(drawing()))


@pytest.mark.parametrize(("size", "word"), [((60, 60), "small"), ((1024, 64), "narrow")])
def test_a_picture_that_cannot_carry_one_says_so(size: tuple[int, int], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        embed_watermark(Image.new("RGB", size), 3)
    with pytest.raises(RequestError, match=word):
        read_watermark(Image.new("RGB", size))
    made = mark(Image.new("RGB", size), RECIPE, "PNG")
    assert made.identifier is None
    assert word in made.notes[0]


def test_the_watermark_of_black_forest_labs_is_read() -> None:
    """The picture was marked by invisible-watermark 0.2.0, called as their command line does."""
    with Image.open(DATA / "dwt_dct.webp") as image:
        picture = image.convert("RGB")
    assert carries_bfl_watermark(picture)
    assert not carries_bfl_watermark(photo())
    assert not carries_bfl_watermark(picture.crop((0, 0, 200, 200)))
    assert not carries_bfl_watermark(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


# The fingerprint.


@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        ([0] * 1024, "ISCC:EEAQAAAAAAAAAAAA"),
        ([(i // 32 * 3 + i % 32 * 5) % 256 for i in range(1024)], "ISCC:EEAYAAAAAAAAAAAA"),
        ([random.Random(i).randrange(256) for i in range(1024)], "ISCC:EEA2G324KGEKCTT6"),
    ],
)
def test_the_fingerprint_is_isccs(pixels: list[int], code: str) -> None:
    """Codes by iscc-core 1.5.0's gen_image_code."""
    assert to_iscc(hash_pixels(pixels)) == code
    assert from_iscc(code) == hash_pixels(pixels)


@pytest.mark.parametrize(
    "text", ["", "ISCC:", "ISCC:!", "ISCC:EEAQ", "ISCC:KACYPXW445FTYNJ3CYSXHAFJMA2HUWULUNRFE3BLHRSCXYH2M5AEGQY"]
)
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(RequestError, match="ISCC"):
        from_iscc(text)


def test_the_fingerprint_hardly_changes_where_the_looks_do_not() -> None:
    plain = photo()
    for other in (recompressed(plain, "JPEG", 50), plain.resize((200, 150))):
        assert (fingerprint(plain) ^ fingerprint(other)).bit_count() <= 4
    assert (fingerprint(plain) ^ fingerprint(drawing())).bit_count() > 12


# The register.


def test_a_picture_without_metadata_is_found_again(tmp_path: Path) -> None:
    register = Register(tmp_path / "register.sqlite")
    for number in range(20):
        register.add(f"job {number}", fingerprint(drawing(number)), number, replace(RECIPE, seed=number))
    looks = fingerprint(recompressed(drawing(5), "JPEG", 50))
    (match,) = register.find(looks, None)
    assert (match.entry.name, match.entry.recipe, match.same_mark) == ("job 5", replace(RECIPE, seed=5), False)
    far = looks ^ 0b11111111111111
    assert register.find(far, None) == []
    assert [match.entry.name for match in register.find(far, 5)] == ["job 5"]
    register.remove("job 5")
    assert Register(tmp_path / "register.sqlite", create=False).find(looks, 5) == []


def test_a_register_replaces_and_keeps_private_entries(tmp_path: Path) -> None:
    register = Register(tmp_path / "register.sqlite")
    register.add("job", 2**64 - 1, None, RECIPE)
    register.add("job", 2**63, None)
    (match,) = register.find(2**63, None)
    assert (match.entry.fingerprint, match.entry.recipe, match.distance) == (2**63, None, 0)


def test_what_is_no_register(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no register"):
        Register(tmp_path / "none", create=False)
    (tmp_path / "text").write_text("text " * 1000)
    with pytest.raises(RequestError, match="cannot be used"):
        Register(tmp_path / "text")


# The signature.


@pytest.fixture(scope="module")
def signer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "signer"


@pytest.fixture(scope="module")
def signer(signer_folder: Path) -> Signer:
    return local_signer(signer_folder)


def signature(data: bytes, file_format: str, authorities: str = "") -> Signature:
    found = read_signature(data, file_format, authorities)
    assert found is not None
    return found


@signatures
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_signed_picture(file_format: str, signer: Signer, signer_folder: Path) -> None:
    data = mark(photo(), RECIPE, file_format, signer=signer, watermark=False).data
    found = signature(data, file_format)
    assert (found.state, found.problems, found.actions) == ("valid", (), ("c2pa.created",))
    assert found.source_types == ("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",)
    assert found.made_by == "headrace 0.1.0"
    assert "local test certificate" in found.organisation
    assert signature(data, file_format, local_authority(signer_folder) or "").state == "trusted"
    assert recipe_of(opened(data), "picture") == RECIPE
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    assert signature(changed, file_format).state == "broken"


@signatures
def test_a_changed_recipe_breaks_the_signature(signer: Signer) -> None:
    data = mark(drawing(), RECIPE, "WEBP", signer=signer, watermark=False).data
    assert b"nobody knows" in data
    forged = data.replace(b"nobody knows", b"you all know")
    found = recipe_of(opened(forged), "picture")
    assert found is not None
    assert found.prompt == "a cat you all know"
    assert signature(forged, "WEBP").problems == ("assertion.dataHash.mismatch",)


@signatures
@watermarks
def test_pictures_that_were_used_are_named_with_their_own_signatures(signer: Signer) -> None:
    first = mark(drawing(), RECIPE, "JPEG", signer=signer, watermark=False)
    unsigned = mark(drawing(1), RECIPE, "PNG", watermark=False)
    ingredients = [
        Ingredient(first.data, "JPEG", "first.jpg", edited=True),
        Ingredient(unsigned.data, "PNG", "second.png"),
    ]
    made = mark(photo(), EDITED, "PNG", signer=signer, ingredients=ingredients)
    found = signature(made.data, "PNG")
    assert found.state == "valid"
    assert found.actions == ("c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound")
    assert found.source_types[0].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert found.ingredients == (("first.jpg", "parentOf", True), ("second.png", "inputTo", None))
    assert found.bindings == (
        ("headrace.rivagan.1", f"{recipe_identifier(EDITED):04x}"),
        ("io.iscc.v0", to_iscc(made.fingerprint)),
    )
    stated = source_type_of(opened(made.data))
    assert stated is not None
    assert stated.endswith("/compositeWithTrainedAlgorithmicMedia")


@signatures
@watermarks
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_private_picture_says_only_that_it_was_made(file_format: str, signer: Signer) -> None:
    ingredient = Ingredient(mark(drawing(), RECIPE, "PNG", watermark=False, private=True).data, "PNG", "holiday.png")
    data = mark(photo(), RECIPE, file_format, private=True, signer=signer, ingredients=[ingredient]).data
    for word in (b"a cat", b"nobody", b"sprite", b"sha256:ab", b"diffusers", b"holiday"):
        assert word not in data
    image = opened(data)
    assert recipe_of(image, "picture") is None
    assert source_type_of(image) == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert signature(data, file_format).state == "valid"
    assert read_watermark(image.convert("RGB")) is not None


@signatures
def test_unsigned_or_stripped(signer: Signer) -> None:
    assert read_signature(mark(drawing(), RECIPE, "PNG", watermark=False).data, "PNG") is None
    stripped = io.BytesIO()
    opened(mark(drawing(), RECIPE, "PNG", watermark=False, signer=signer).data).save(stripped, "PNG")
    assert read_signature(stripped.getvalue(), "PNG") is None


@signatures
@pytest.mark.parametrize("kind", ["secp384r1", "ed25519", "rsa"])
def test_certificates_of_ones_own(kind: str, tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, kind)
    own = open_signer(chain, key)
    assert own.algorithm == {"secp384r1": "es384", "ed25519": "ed25519", "rsa": "ps256"}[kind]
    found = signature(mark(drawing(), RECIPE, "JPEG", watermark=False, signer=own).data, "JPEG")
    assert (found.state, found.organisation) == ("valid", "Test Publisher")


@signatures
def test_what_cannot_sign(tmp_path: Path, signer_folder: Path, signer: Signer) -> None:
    chain, key = write_certificate(tmp_path, "secp384r1")
    with pytest.raises(RequestError, match="not that of the first certificate"):
        open_signer(signer_folder / "chain.pem", key)
    with pytest.raises(RequestError, match="no certificates"):
        open_signer(key, key)
    with pytest.raises(RequestError, match="no unencrypted private key"):
        open_signer(chain, chain)
    with pytest.raises(RequestError, match="does not exist"):
        open_signer(tmp_path / "none", key)

    def unreachable(data: bytes) -> bytes:
        raise OSError("the key service is away")

    with pytest.raises(HeadraceError, match="could not be signed"):
        mark(drawing(), RECIPE, "PNG", watermark=False, signer=replace(signer, sign=unreachable))


def write_certificate(folder: Path, kind: str) -> tuple[Path, Path]:
    """A certificate by an authority of its own, and its key, as PEM files."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey = {
        "secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }[kind]()
    authority = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Publisher")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Authority")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


@signatures
@watermarks
def test_a_signature_that_declares_another_watermark(signer: Signer, tmp_path: Path) -> None:
    made = mark(photo(), RECIPE, "PNG", identifier=7)
    assert made.identifier == 7
    data = sign_picture(made.data, "PNG", RECIPE, signer, (), 8, made.fingerprint)
    (tmp_path / "a.png").write_bytes(data)
    verdict = verify(tmp_path / "a.png")
    assert (verdict.signature is not None and verdict.signature.state, verdict.broken) == ("valid", True)
    assert verdict.disagreements == ("The signature declares watermark 0008, the pixels carry 0007.",)
    assert verdict.watermark_names_recipe is False


# The benchmark.


@watermarks
def test_the_table_counts_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.bench import marks

    def gone(image: Image.Image) -> Image.Image:
        return Image.new("RGB", image.size, "grey")

    monkeypatch.setattr(marks, "_harms", lambda: iter([("none", lambda image: image, 1.0), ("all", gone, 1.0)]))
    monkeypatch.setattr(marks.read_watermark, "__defaults__", ((1.0,),))
    cost, unharmed, lost = marks.measure_marks({"photographs": [photo()]}, 400)
    assert isinstance(cost, marks.Cost)
    assert (cost.pictures, cost.false, cost.searched) == (1, 0, 2)
    assert 40 < cost.psnr < 45
    assert isinstance(unharmed, marks.Survival)
    assert isinstance(lost, marks.Survival)
    assert (unharmed.accuracy > 0.9, unharmed.found) == (True, 1)
    assert (0.2 < lost.accuracy < 0.8, lost.found) == (True, 0)
