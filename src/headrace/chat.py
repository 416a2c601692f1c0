"""A session of pictures: a line is a prompt, and what was made before can be spoken of as $1, $2, ...

A session is a folder with its pictures and `session.json`, which says in which order they were made; it is written
whole after every picture, so that a session that was broken off goes on where it was. Nothing here knows of terminals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.checkpoints.weights import expanded
from headrace.errors import RequestError
from headrace.pictures import check_output, picture_format, read_file, write_file
from headrace.recipe import check_prompt, check_seed, draw_seed, parse_size

SESSION_FILE = "session.json"
MAX_SESSION_BYTES = 16 * 2**20
MAX_TURNS = 10_000
MENTION = re.compile(r"\$(\d{1,5})(?!\d)")
# A name without a folder in it, so that a session's file cannot point elsewhere.
PICTURE_NAME = re.compile(r"\d{1,5}\.png")
SAVED = re.compile(r"(?:\$(?P<number>\d{1,5})\s+)?(?P<path>.+\.(?:png|jpe?g|webp))", re.IGNORECASE)

HELP = """\
a line            makes a picture of it
$1 $2 combine     uses pictures 1 and 2 of the session as references
size 512x768      the size from now on; size alone: the model's own
seed 7            the seed of the next picture
again             the last prompt with another seed
undo              forgets the last picture
save FILE         writes the last picture there; save $2 FILE: picture 2
list              what has been made
quit              ends the session, which can be gone on with"""


@dataclass(frozen=True)
class Turn:
    """One picture: number (from 1), what was typed, the prompt as the model read it, and what it was made with."""

    number: int
    line: str
    prompt: str
    references: tuple[int, ...]
    seed: int
    size: str

    @property
    def file_name(self) -> str:
        return f"{self.number}.png"


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be made. size: empty for the model's own. references: files."""

    prompt: str
    references: tuple[Path, ...]
    seed: int
    size: str


# Makes a picture and writes it to a PNG; returns the prompt as it was used and the size, as WxH.
Make = Callable[[Wanted, Path], tuple[str, str]]


@dataclass(frozen=True)
class Session:
    """Where a session is. numbered: how many pictures have been made, undone ones included."""

    folder: Path
    turns: tuple[Turn, ...] = ()
    size: str = ""
    numbered: int = 0
    next_seed: int | None = field(default=None, compare=False)

    def path(self, turn: Turn) -> Path:
        return self.folder / turn.file_name

    def turn(self, number: int) -> Turn:
        """Raises RequestError where there is no picture of that number."""
        for turn in self.turns:
            if turn.number == number:
                return turn
        there = ", ".join(f"${turn.number}" for turn in self.turns[-8:]) or "none yet"
        raise RequestError(f"There is no picture ${number} in this session (there are: {there}).")

    @property
    def last(self) -> Turn:
        """Raises RequestError where nothing has been made yet."""
        if not self.turns:
            raise RequestError("Nothing has been made yet; type what the picture should show.")
        return self.turns[-1]


def open_session(folder: Path) -> Session:
    """The session in a folder, or a new one there. Raises RequestError where the folder holds something else."""
    file = folder / SESSION_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            return Session(folder)
    except OSError as error:
        raise RequestError(
            f"The session {folder} cannot be opened ({(error.strerror or str(error)).lower()})."
        ) from error
    try:
        values = json.loads(read_file(file, "session", MAX_SESSION_BYTES))
        turns = tuple(_turn(entry) for entry in values["turns"])
        size, numbered = values["size"], values["numbered"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(f"{file} is no session of headrace chat; name another folder.") from error
    if not isinstance(size, str) or type(numbered) is not int or numbered < max((t.number for t in turns), default=0):
        raise RequestError(f"{file} is no session of headrace chat; name another folder.")
    there = tuple(turn for turn in turns if (folder / turn.file_name).is_file())
    return Session(folder, there, size, numbered)


def answer(session: Session, line: str, make: Make) -> tuple[Session, str]:
    """The session after a line, and what is to be said to it.

    Raises RequestError where the line asks for what cannot be; the session then stays as it was.
    """
    line = line.strip()
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line:
        return session, ""
    if line == "help":
        return session, HELP
    if line == "again":
        last = session.last
        return _made(session, last.line, last.references, make, last.size if session.size == "" else session.size)
    if line == "undo":
        return _undone(session)
    if line == "list":
        return session, "\n".join(
            f"${turn.number}  {turn.size}  {turn.line}" for turn in session.turns
        ) or "nothing yet"
    if line == "size" or (word == "size" and re.fullmatch(r"\d+\s*[xX×]\s*\d+", rest)):  # noqa: RUF001
        return _kept(replace(session, size=_size(rest))), f"size {_size(rest) or 'of the model'} from now on"
    if word == "seed" and rest.isascii() and rest.isdigit():
        return replace(session, next_seed=check_seed(int(rest))), f"seed {rest} for the next picture"
    if word == "save" and SAVED.fullmatch(rest):
        return session, _saved(session, rest)
    numbers = tuple(dict.fromkeys(int(found) for found in MENTION.findall(line)))
    return _made(session, line, numbers, make, session.size)


def prompt_of(line: str, references: Sequence[int]) -> str:
    """The line as the model reads it: `$7` becomes the number of the reference that picture 7 is; leading ones go.

    `"$3 $1 combine them"` -> `"combine them"`; `"put the cat of $3 beside $1"` -> `"put the cat of image 1 beside
    image 2"`.
    """
    text = re.sub(r"^(?:\$\d{1,5}[\s,]+)+", "", line).strip() or line
    return MENTION.sub(lambda found: f"image {references.index(int(found[1])) + 1}", text)


def _made(session: Session, line: str, numbers: tuple[int, ...], make: Make, size: str) -> tuple[Session, str]:
    if session.numbered >= MAX_TURNS:
        raise RequestError(f"The session has {MAX_TURNS:,} pictures; begin another.")
    references = tuple(session.path(session.turn(number)) for number in numbers)
    if numbers and MENTION.sub("", line).strip(" ,") == "":
        raise RequestError("Say what is to be done with the pictures, as in: $1 $2 combine them.")
    seed = draw_seed() if session.next_seed is None else session.next_seed
    prompt = check_prompt(prompt_of(line, numbers))
    number = session.numbered + 1
    turn = Turn(number, line, prompt, numbers, seed, size)
    used, made_size = make(Wanted(prompt, references, seed, size), session.path(turn))
    turn = replace(turn, prompt=used, size=made_size)
    after = replace(session, turns=(*session.turns, turn), numbered=number, next_seed=None)
    return _kept(after), f"${number}  {session.path(turn)}  (seed {seed}, {made_size})"


def _undone(session: Session) -> tuple[Session, str]:
    last = session.last
    after = _kept(replace(session, turns=session.turns[:-1]))
    session.path(last).unlink(missing_ok=True)
    return after, f"${last.number} is forgotten"


def _saved(session: Session, rest: str) -> str:
    match = SAVED.fullmatch(rest)
    assert match is not None
    turn = session.last if match["number"] is None else session.turn(int(match["number"]))
    target = expanded(match["path"])
    check_output(target)
    if picture_format(target) != "PNG":
        raise RequestError("A session's pictures are saved as they are, as .png.")
    write_file(target, session.path(turn).read_bytes())
    return f"wrote {target}"


def _size(text: str) -> str:
    if not text:
        return ""
    width, height = parse_size(text)
    return f"{width}x{height}"


def _kept(session: Session) -> Session:
    """The same, written to its folder."""
    document = {"turns": [asdict(t) for t in session.turns], "size": session.size, "numbered": session.numbered}
    write_file(session.folder / SESSION_FILE, json.dumps(document, ensure_ascii=False, indent=1).encode())
    return session


def _turn(entry: Any) -> Turn:
    """Raises ValueError, TypeError or KeyError for what is no turn."""
    turn = Turn(**{**entry, "references": tuple(entry["references"])})
    texts, numbers = (turn.line, turn.prompt, turn.size), (turn.number, turn.seed, *turn.references)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("not a turn")
    if not PICTURE_NAME.fullmatch(turn.file_name) or (turn.size and _size(turn.size) != turn.size):
        raise ValueError("not a turn")
    return turn
