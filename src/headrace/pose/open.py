"""A file that shows or tells poses."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import RequestError
from headrace.pictures import MAX_FILE_BYTES, open_picture, read_file
from headrace.pose.keypoints import Poses, read_poses
from headrace.recipe import MAX_AREA

MAX_KEYPOINT_BYTES = 16 * 2**20


def open_poses(path: str | Path, size: tuple[int, int] | None = None) -> Poses:
    """The people in a keypoints file or in a photo, told apart by what the file begins with.

    size: of the picture to be drawn; by default the file's own, up to 4 megapixels. Raises RequestError where there is
    nobody, or the file is neither.
    """
    data = read_file(Path(path), "pose", MAX_FILE_BYTES)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        if len(data) > MAX_KEYPOINT_BYTES:
            raise RequestError(f"The keypoints {path} have more than {MAX_KEYPOINT_BYTES // 2**20} MiB.")
        return read_poses(data.removeprefix(b"\xef\xbb\xbf"), str(path), size)
    from headrace.pose.estimate import estimate_poses

    photo = open_picture(path, kind="photo")
    if size is None and photo.width * photo.height > MAX_AREA:
        scale = (MAX_AREA / (photo.width * photo.height)) ** 0.5
        size = max(1, int(photo.width * scale)), max(1, int(photo.height * scale))
    return estimate_poses(photo, f"photo {path}").scaled(size or photo.size)
