"""`headrace pose`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from headrace.errors import RequestError
from headrace.pictures import check_output, encode_picture, picture_format, write_file
from headrace.recipe import parse_size

_FILE = click.Path(path_type=Path)
_STANDARD = Path("-")


@click.command()
@click.argument("source", type=_FILE, metavar="KEYPOINTS|PHOTO")
@click.option(
    "-o", "--output", type=_FILE, metavar="FILE", help="Where to draw: .png, .jpg or .webp, or - for a PNG on standard "
    "output.",
)  # fmt: skip
@click.option("--size", metavar="WxH", help="Multiples of 16. Default: the file's own canvas, or the photo's size.")
@click.option("--json", "as_json", is_flag=True, help="Print the keypoints as OpenPose writes them (COCO-18).")
def pose(source: Path, output: Path | None, size: str | None, as_json: bool) -> None:
    """Draw the people of a keypoints file, or of a photo, as OpenPose draws them.

    \b
    headrace pose keypoints.json -o pose.png --size 768x1024
    headrace pose photo.jpg -o pose.png --json > keypoints.json

    Keypoints are JSON with the bodies of OpenPose (BODY_25, COCO-18), COCO (17) or DWPose (133), hands and faces where
    there are any, of up to 100 people. A photo needs pip install 'headrace[pose]', and the networks inside
    pip install --no-deps mediapipe==0.10.21; nothing is downloaded by Headrace.
    """
    if output is None and not as_json:
        raise click.UsageError("Name a picture with -o, or ask for --json", click.get_current_context())
    if output == _STANDARD and as_json:
        raise RequestError("Standard output takes the picture or the keypoints; name a file with -o.")
    if output not in (None, _STANDARD):
        check_output(output)

    from headrace.pose import draw_poses, open_poses

    poses = open_poses(source, None if size is None else parse_size(size))
    if output == _STANDARD:
        sys.stdout.buffer.write(encode_picture(draw_poses(poses), "PNG", {}))
    elif output is not None:
        write_file(output, encode_picture(draw_poses(poses), picture_format(output), {}))
        people = f"{len(poses.people)} {'person' if len(poses.people) == 1 else 'people'}"
        click.echo(f"wrote {output} ({people}, {poses.width}x{poses.height})", err=as_json)
    if as_json:
        click.echo(json.dumps(poses.as_openpose()))
