"""`headrace generate --mark`, `verify` and `reproduce`, from the command line, with small random models."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.cli.main import main
from headrace.provenance import Register, read_recipe, save_picture
from headrace.provenance.fingerprint import from_iscc

marks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("c2pa", "cryptography", "imwatermark")),
    reason="needs headrace[provenance]",
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, object]:
        return dict(json.loads(self.out))


@pytest.fixture
def run(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Result]:
    """`run(command, *arguments)` in this process, in the test's folder; those that need a model get a small klein."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(command: str, *arguments: str | Path) -> Result:
        model = [] if command == "verify" else ["--model", tiny_model("klein"), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in ("headrace", command, *arguments, *model)])
        capfd.readouterr()
        return Result(main(), *capfd.readouterr())

    return run


def picture(path: Path, color: str, size: tuple[int, int] = (32, 32)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_all_bits_agree(run: Callable[..., Result], ending: str) -> None:
    assert run("generate", "a cat", "--size", "48x32", "--steps", "2", "--seed", "7", "-o", f"a.{ending}").code == 0
    result = run("reproduce", f"a.{ending}", "-o", "again.png", "--json")
    assert result.code == 0
    assert result.values["same"] is True
    assert read_recipe("again.png") == read_recipe(f"a.{ending}")


def test_a_changed_picture_does_not_agree(run: Callable[..., Result]) -> None:
    run("generate", "a cat", "--size", "32x32", "--steps", "1", "-o", "a.png")
    with Image.open("a.png") as image:
        changed = np.asarray(image).copy()
    changed[5, 6, 1] ^= 8
    save_picture(Image.fromarray(changed), read_recipe("a.png"), "a.png")
    result = run("reproduce", "a.png")
    assert (result.code, result.out) == (1, "a.png: bits differ, by up to 8 of 255\n")


def test_references_are_asked_for_and_known_by_their_pixels(run: Callable[..., Result], tmp_path: Path) -> None:
    first, second, other = (
        picture(tmp_path / f"{color}.png", color, size)
        for color, size in (("red", (32, 32)), ("blue", (50, 40)), ("lime", (32, 32)))
    )
    asked = "--size", "32x32", "--steps", "1", "-o", "a.png", "--ref", first, "--ref", second
    assert run("generate", "image 1 beside image 2", *asked).code == 0
    missing = run("reproduce", "a.png", "--ref", first)
    assert missing.code == 2
    assert "48x32" in missing.err
    assert "--ref" in missing.err
    assert run("reproduce", "a.png", "--ref", first, "--ref", other).code == 2
    assert run("reproduce", "a.png", "--ref", second, "--ref", first).code == 0


def test_an_edit_needs_its_source_and_mask(run: Callable[..., Result], tmp_path: Path) -> None:
    source, other = picture(tmp_path / "red.png", "red", (40, 32)), picture(tmp_path / "lime.png", "lime", (40, 32))
    mask = Image.new("L", (40, 32))
    mask.paste(255, (20, 0, 40, 32))
    mask.save("mask.png")
    made = run("generate", "a door", "--image", source, "--mask", "mask.png", "--steps", "1", "-o", "a.png")
    assert made.code == 0
    assert "--image" in run("reproduce", "a.png").err
    assert "--mask" in run("reproduce", "a.png", "--image", source).err
    assert "not the one that was edited" in run("reproduce", "a.png", "--image", other, "--mask", "mask.png").err
    assert run("reproduce", "a.png", "--image", source, "--mask", "mask.png").code == 0


@pytest.mark.parametrize(
    "arguments",
    [("--outpaint", "8,0,0,16"), ("--size", "48x48", "--fit", "pad"), ("--size", "32x32", "--strength", "0.6")],
)
def test_an_edit_is_placed_as_it_was(run: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    source = picture(tmp_path / "red.png", "red", (40, 32))
    assert run("generate", "a door", "--image", source, *arguments, "--steps", "2", "-o", "a.png").code == 0
    assert run("reproduce", "a.png", "--image", source).code == 0


def test_another_model_is_refused(run: Callable[..., Result], tiny_model: Callable[[str], Path]) -> None:
    run("generate", "a cat", "--size", "32x32", "--steps", "1", "-o", "a.png")
    recipe = read_recipe("a.png")
    with Image.open("a.png") as image:
        save_picture(
            image.convert("RGB"), type(recipe)(**{**vars(recipe), "model_hash": "sha256:" + "0" * 64}), "a.png"
        )
    refused = run("reproduce", "a.png")
    assert refused.code == 2
    assert "is not the model that made" in refused.err


def test_what_has_no_recipe(run: Callable[..., Result], tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "red")
    assert run("reproduce", "a.png").code == 2
    assert run("reproduce", "none.png").code == 2


@marks
def test_a_marked_picture_is_verified_reproduced_and_found_again(run: Callable[..., Result], tmp_path: Path) -> None:
    photo = Path(__file__).parent / "data" / "provenance" / "cat.webp"
    mask = Image.new("L", (400, 300))
    mask.paste(255, (200, 100, 232, 132))
    mask.save("mask.png")
    edit = "--image", photo, "--mask", "mask.png"
    made = run("generate", "a cat", *edit, "--steps", "1", "--seed", "7", "--mark", "-o", "a.png")
    assert (made.code, "watermark" in made.err) == (0, False)
    result = run("verify", "a.png", "--json")
    verdict = result.values
    assert result.code == 0
    assert verdict["signature"]["state"] == "trusted"
    assert verdict["signature"]["ingredients"] == [["cat.webp", "parentOf", None]]
    assert verdict["watermark_names_recipe"] is True
    assert verdict["recipe"]["seed"] == 7

    again = run("reproduce", "a.png", *edit, "--json").values
    assert (again["same"], again["watermark"]) == (True, verdict["watermark"]["identifier"])

    register = Register("register.sqlite")
    register.add("job 1", from_iscc(verdict["fingerprint"]), int(again["watermark"], 16), read_recipe("a.png"))
    with Image.open("a.png") as image:
        Image.fromarray(np.asarray(image)).save("stripped.png")
    stripped = run("verify", "stripped.png", "--registry", "register.sqlite", "--json").values
    assert (stripped["recipe"], stripped["signature"]) == (None, None)
    (match,) = stripped["matches"]
    assert (match["name"], match["same_watermark"], match["recipe"]["prompt"]) == ("job 1", True, "a cat")
    assert "a cat" in run("verify", "stripped.png", "--registry", "register.sqlite").out

    data = Path("a.png").read_bytes()
    Path("forged.png").write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    assert run("verify", "forged.png").code in (1, 2)  # 2 where the pixels cannot even be read


@marks
def test_ones_own_certificate_and_a_private_reference(run: Callable[..., Result], tmp_path: Path) -> None:
    from test_marks import write_certificate

    chain, key = write_certificate(tmp_path, "secp384r1")
    reference = picture(tmp_path / "red.png", "red")
    asked = "--ref", reference, "--size", "32x32", "--steps", "1", "--private", "--sign-with", chain, key
    made = run("generate", "a secret", *asked, "-o", "a.webp")
    assert made.code == 0
    assert "too small for a watermark" in made.err
    shown = run("verify", "a.webp")
    assert shown.code == 0
    assert "Test Publisher" in shown.out
    assert "used as reference: picture 1" in shown.out
    assert "recipe: none" in shown.out
    assert b"secret" not in Path("a.webp").read_bytes()
    refused = run("generate", "a cat", "--sign-with", key, chain, "-o", "b.png")
    assert refused.code == 2
    assert not Path("b.png").exists()


def test_what_verify_cannot_look_into(run: Callable[..., Result], tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "red")
    assert run("verify", "a.png").code == 0
    assert run("verify", "none.png").code == 2
    assert run("verify", "a.png", "--registry", "none.sqlite").code == 2
    (tmp_path / "text.png").write_text("text")
    assert run("verify", "text.png").code == 2
