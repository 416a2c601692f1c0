"""Pictures in and out: a folder of inputs, a folder of results, and links to results that end after ten minutes."""

from __future__ import annotations

import hashlib
import hmac
import io
import time
from pathlib import Path
from urllib.parse import urlencode

from headrace.pictures import open_bounded, write_file
from headrace.server.refusals import Refused

LINK_SECONDS = 600
MAX_PICTURE_BYTES = 20 * 2**20
MAX_PICTURE_PIXELS = 4096 * 4096
MIN_PICTURE_SIDE = 16
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
ENDINGS = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}


class Files:
    """The two folders in the data folder; machines that share jobs share it. secret: signs links and polling URLs."""

    def __init__(self, data: Path, public_url: str, secret: bytes) -> None:
        self._inputs = data / "inputs"
        self._results = data / "results"
        self._public_url = public_url.rstrip("/")
        self._secret = secret
        for folder in (self._inputs, self._results):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep_input(self, job_id: str, index: int, data: bytes) -> str:
        """Writes a picture that came with a job, and returns its name."""
        name = f"{job_id}-{index}"
        write_file(self._inputs / name, data)
        return name

    def input_path(self, name: str) -> Path:
        return self._inputs / name

    def keep_result(self, job_id: str, attempt: int, output_format: str, data: bytes) -> str:
        """Writes a finished picture, and returns its name, which no other attempt has."""
        name = f"{job_id}-{attempt}.{ENDINGS[output_format]}"
        write_file(self._results / name, data)
        return name

    def result(self, name: str) -> bytes:
        """Raises Refused (404) where it has been removed."""
        try:
            return (self._results / name).read_bytes()
        except OSError as error:
            raise Refused(404, "This picture is no longer kept.") from error

    def remove(self, job_id: str) -> None:
        """All pictures of a job."""
        for folder in (self._inputs, self._results):
            for path in folder.glob(f"{job_id}-*"):
                path.unlink(missing_ok=True)

    def remove_inputs(self, job_id: str) -> None:
        for path in self._inputs.glob(f"{job_id}-*"):
            path.unlink(missing_ok=True)

    def link(self, name: str, now: float | None = None) -> str:
        """A URL at which anybody who has it can fetch the result for ten minutes."""
        expires = int((time.time() if now is None else now) + LINK_SECONDS)
        query = urlencode({"expires": expires, "signature": self._sign(f"result:{name}:{expires}")})
        return f"{self._public_url}/results/{name}?{query}"

    def open_link(self, name: str, expires: str, signature: str, now: float | None = None) -> bytes:
        """The file behind a link. Raises Refused: 403 where the link has ended or was not made here."""
        signed = self._sign(f"result:{name}:{expires}")
        if not hmac.compare_digest(signed.encode(), signature.encode()) or not expires.isdigit():
            raise Refused(403, "This link was not made here.")
        if int(expires) < (time.time() if now is None else now):
            raise Refused(403, "This link has expired; ask for the result again to get a new one.")
        return self.result(name)

    def polling_url(self, job_id: str, path: str = "/v1/get_result") -> str:
        """Where a job is asked about, by whoever has this URL: not every client sends its key there."""
        return f"{self._public_url}{path}?{urlencode({'id': job_id, 'token': self.token(job_id)})}"

    def token(self, job_id: str) -> str:
        return self._sign(f"job:{job_id}")

    def is_token(self, job_id: str, token: str) -> bool:
        return hmac.compare_digest(self.token(job_id).encode(), token.encode())

    def url(self, path: str) -> str:
        return self._public_url + path

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:40]


def check_picture(data: bytes, name: str) -> tuple[int, int]:
    """The size of a picture that came in, after decoding it whole. Raises Refused (422) where it is none, or too large.

    At most 20 MiB and 4096x4096 pixels.
    """
    from headrace.errors import RequestError
    from headrace.pictures import open_picture

    if len(data) > MAX_PICTURE_BYTES:
        raise Refused(422, f"The {name} has more than {MAX_PICTURE_BYTES // 2**20} MiB, the most that is taken.")
    try:
        image = open_bounded(data, name)
        if image.width * image.height > MAX_PICTURE_PIXELS:
            raise Refused(422, f"The {name} has {image.width}x{image.height} pixels; at most 4096x4096 are taken.")
        if min(image.size) < MIN_PICTURE_SIDE:
            raise Refused(422, f"The {name} has {image.width}x{image.height} pixels; {MIN_PICTURE_SIDE} are the least.")
        try:
            image.load()
        except Exception as error:
            raise Refused(422, f"The {name} is a damaged or cut-off {image.format} file.") from error
        return open_picture(image, kind=name).size
    except RequestError as error:
        raise Refused(422, str(error)) from error


def as_format(data: bytes, output_format: str, size: tuple[int, int] | None = None) -> bytes:
    """A picture file in another format, and at another size."""
    from PIL import Image

    from headrace.pictures import encode_picture

    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    return encode_picture(picture if size is None else picture.resize(size), output_format, {})
