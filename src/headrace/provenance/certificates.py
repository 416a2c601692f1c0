"""Who signs: a certificate and key of one's own, any function that signs, or a test certificate made on first use."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import RequestError
from headrace.pictures import read_file, reason, write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

MAX_PEM_BYTES = 2**20
LOCAL_ORGANISATION = "Headrace local test certificate"

_CHAIN_FILE, _KEY_FILE, _AUTHORITY_FILE = "chain.pem", "key.pem", "authority.pem"
_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Signer:
    """Certificates in PEM, the signer's own first, and what signs bytes with its key.

    algorithm: es256, es384, es512, ps256 or ed25519 (C2PA 2.2, 13.2.1). sign: gives the raw signature, which for
    elliptic curves is r and s one after the other; it may run elsewhere, so that no key is here. time_authority: URL of
    an RFC 3161 service, which is asked on every signature.
    """

    certificates: str
    algorithm: str
    sign: Callable[[bytes], bytes]
    time_authority: str | None = None


def open_signer(certificates: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
    """The signer of a PEM file with certificates, its own first, and one with their unencrypted private key.

    Raises RequestError where they cannot be read, do not belong together, or the key is of a kind that C2PA has not.
    """
    need_extra()
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    chain = read_file(Path(certificates), "certificate file", MAX_PEM_BYTES)
    secret = read_file(Path(key), "key file", MAX_PEM_BYTES)
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise RequestError(f"The certificate file {certificates} holds no certificates in PEM.") from error
    try:
        private = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise RequestError(f"The key file {key} holds no unencrypted private key in PEM.") from error
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise RequestError(f"The key in {key} is not that of the first certificate in {certificates}.")
    algorithm, sign = _signing(private, str(key))
    return Signer(chain.decode(), algorithm, sign)


def local_signer(folder: Path | None = None) -> Signer:
    """This machine's own signer, which nobody else has reason to trust; its key and certificates are made on first use.

    folder: where they are kept, by default `local_folder()`. Raises RequestError where it cannot be written.
    """
    need_extra()
    folder = local_folder() if folder is None else folder
    if not (folder / _KEY_FILE).exists():
        _make_local(folder)
    return open_signer(folder / _CHAIN_FILE, folder / _KEY_FILE)


def local_authority(folder: Path | None = None) -> str | None:
    """The certificate, in PEM, that vouches for this machine's own signer; None before first use."""
    path = (local_folder() if folder is None else folder) / _AUTHORITY_FILE
    return read_file(path, "certificate file", MAX_PEM_BYTES).decode() if path.exists() else None


def local_folder() -> Path:
    """Where a user's own signer is kept."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "headrace", "signer")


def need_extra() -> None:
    """Raises RequestError where the packages that sign are not installed."""
    try:
        import c2pa  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RequestError("Signing needs two more packages: pip install 'headrace[provenance]'.") from error


def _signing(key: Any, name: str) -> tuple[str, Callable[[bytes], bytes]]:
    """C2PA's name for what the key does, and that."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    curves: dict[str, tuple[str, Any, int]] = {
        "secp256r1": ("es256", hashes.SHA256(), 32),
        "secp384r1": ("es384", hashes.SHA384(), 48),
        "secp521r1": ("es512", hashes.SHA512(), 66),
    }
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        algorithm, digest, size = curves[key.curve.name]

        def sign_on_curve(data: bytes) -> bytes:
            numbers = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
            return b"".join(number.to_bytes(size, "big") for number in numbers)

        return algorithm, sign_on_curve
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519", key.sign
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        filling = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return "ps256", lambda data: key.sign(data, filling, hashes.SHA256())
    raise RequestError(
        f"The key in {name} cannot sign for C2PA; use one on the curve P-256, P-384 or P-521, Ed25519, or RSA with "
        "2048 bits."
    )


def _make_local(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate(authority_key, "authority", authority_key, None)
    leaf = _certificate(key, "signer", authority_key, authority)
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in (leaf, authority)]
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".signer-", ignore_cleanup_errors=True) as beside:
            made = Path(beside, folder.name)
            made.mkdir(mode=0o700)
            for name, data in ((_AUTHORITY_FILE, pem[1]), (_CHAIN_FILE, b"".join(pem)), (_KEY_FILE, secret)):
                write_file(made / name, data)
            with contextlib.suppress(FileExistsError):  # another process was first, with as good a key
                _rename(made, folder)
    except OSError as error:
        raise RequestError(f"The signer's key cannot be kept in {folder} ({reason(error)}).") from error


def _rename(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError as error:
        if folder.is_dir() and (folder / _KEY_FILE).exists():
            raise FileExistsError from error
        raise


def _certificate(
    key: EllipticCurvePrivateKey, role: str, issuer_key: EllipticCurvePrivateKey, issuer: Certificate | None
) -> Certificate:
    """A certificate as C2PA asks for (2.2, 14.5): of an authority where it has no issuer, else of a signer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, LOCAL_ORGANISATION),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{LOCAL_ORGANISATION}, {role}"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    use = dict.fromkeys(
        (
            "content_commitment",
            "crl_sign",
            "data_encipherment",
            "decipher_only",
            "digital_signature",
            "encipher_only",
            "key_agreement",
            "key_cert_sign",
            "key_encipherment",
        ),
        False,
    )
    use["key_cert_sign" if issuer is None else "digital_signature"] = True
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**use), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
