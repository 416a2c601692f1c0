"""A session of pictures, without a terminal and, once, through the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Run
from headrace.chat import SESSION_FILE, Session, Wanted, answer, open_session, prompt_of
from headrace.errors import RequestError


class Maker:
    """Makes small pictures and keeps what was wanted."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []

    def __call__(self, wanted: Wanted, target: Path) -> tuple[str, str]:
        if wanted.prompt == "fail":
            raise RequestError("It cannot be.")
        self.wanted.append(wanted)
        Image.new("RGB", (16, 16)).save(target)
        return wanted.prompt + "!", wanted.size or "128x128"


def told(session: Session, maker: Maker, *lines: str) -> Session:
    for line in lines:
        session, _ = answer(session, line, maker)
    return session


def test_pictures_are_made_and_spoken_of(tmp_path: Path) -> None:
    maker = Maker()
    session = told(
        open_session(tmp_path / "chat"), maker, "a cat", "", "size 512x768", "a dog", "$2 $1 combine them, seed of life"
    )
    assert [wanted.prompt for wanted in maker.wanted] == ["a cat", "a dog", "combine them, seed of life"]
    assert [wanted.size for wanted in maker.wanted] == ["", "512x768", "512x768"]
    assert maker.wanted[2].references == (tmp_path / "chat" / "2.png", tmp_path / "chat" / "1.png")
    assert [turn.number for turn in session.turns] == [1, 2, 3]
    assert session.turns[0].prompt == "a cat!"
    assert session.turns[0].size == "128x128"


def test_again_undo_seed_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maker = Maker()
    session = told(open_session(tmp_path / "chat"), maker, "seed 7", "a cat", "$1 make it red", "again")
    first, second, third = maker.wanted
    assert first.seed == 7
    assert (second.prompt, second.references) == (third.prompt, third.references)
    assert len({wanted.seed for wanted in maker.wanted}) == 3
    session = told(session, maker, "undo", "save $1 one.png", "save last.png")
    assert not (tmp_path / "chat" / "3.png").exists()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "chat" / "1.png").read_bytes()
    assert (tmp_path / "last.png").exists()
    assert answer(session, "list", maker)[1].splitlines()[1].startswith("$2")
    session = told(session, maker, "a third")
    assert session.turns[-1].number == 4, "a number that was forgotten is not given again"
    told(session, maker, "save the whales")
    assert maker.wanted[-1].prompt == "save the whales"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("$9 larger", "no picture \\$9"),
        ("$1", "Say what is to be done"),
        ("fail", "It cannot be"),
        ("size 17x16", "nearest that work"),
        ("save none/a.png", "does not exist"),
        ("save a.jpg", "as .png"),
    ],
)
def test_what_cannot_be_changes_nothing(line: str, sentence: str, tmp_path: Path) -> None:
    maker = Maker()
    session = told(open_session(tmp_path / "chat"), maker, "a cat")
    before = (session.folder / SESSION_FILE).read_bytes()
    with pytest.raises(RequestError, match=sentence):
        answer(session, line, maker)
    assert (session.folder / SESSION_FILE).read_bytes() == before
    for command in ("again", "undo", "save a.png"):
        with pytest.raises(RequestError, match="Nothing has been made"):
            answer(open_session(tmp_path / "new"), command, maker)


def test_a_session_survives(tmp_path: Path) -> None:
    maker = Maker()
    session = told(open_session(tmp_path), maker, "size 64x64", "a cat", "$1 a dog", "undo")
    again = open_session(tmp_path)
    assert again == session
    assert told(again, maker, "a bird").turns[-1].number == 3
    (tmp_path / "1.png").unlink()
    assert [turn.number for turn in open_session(tmp_path).turns] == [3]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"turns": [{"number": "../x"}], "size": "", "numbered": 1}',
        '{"turns": [], "size": 3, "numbered": 0}',
        '{"turns": [{"number": 2, "line": "", "prompt": "", "references": [], "seed": 1, "size": ""}], "numbered": 1}',
        "[" * 10_000,
    ],
)
def test_another_file_is_no_session(content: str, tmp_path: Path) -> None:
    (tmp_path / SESSION_FILE).write_text(content)
    with pytest.raises(RequestError, match="session"):
        open_session(tmp_path)


@pytest.mark.parametrize(
    ("line", "numbers", "prompt"),
    [
        ("$1 $2 combine them", (1, 2), "combine them"),
        ("put the cat of $3 beside $1", (3, 1), "put the cat of image 1 beside image 2"),
        ("$2, $2 in the colours of $5", (2, 5), "in the colours of image 2"),
        ("a price of $", (), "a price of $"),
    ],
)
def test_the_prompt_of_a_line(line: str, numbers: tuple[int, ...], prompt: str) -> None:
    assert prompt_of(line, numbers) == prompt


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80))
def test_any_line_is_answered_or_refused(line: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(Path(folder))
        try:
            after, said = answer(session, line, Maker())
        except RequestError:
            return
        assert open_session(Path(folder)).turns == after.turns
        assert isinstance(said, str)


def test_the_command_reads_lines(headrace: Run, tmp_path: Path) -> None:
    done = headrace("chat", "--device", "cpu", input="size 64x64\nseed 3\na red apple\n$1 $9\nquit\nnot read\n")
    assert done.returncode == 2
    assert "$1  headrace-chat/1.png  (seed 3, 64x64)" in done.stdout
    assert "There is no picture $9" in done.stderr
    with Image.open(tmp_path / "headrace-chat" / "1.png") as picture:
        assert picture.size == (64, 64)
    assert not (tmp_path / "headrace-chat" / "2.png").exists()
