"""What a server was started with: one frozen value, which its workers are given as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServedModel:
    """A model as clients call it, and where it is: what `headrace generate --model` takes."""

    name: str
    spec: str


@dataclass(frozen=True)
class Settings:
    """How one `headrace serve` runs.

    data: the folder of results, inputs and the embedded database. database: SQLAlchemy's URL. models: what this
    process's worker makes pictures with; the first answers for names that no model has. keep_seconds: how long jobs
    and their pictures stay. lease_seconds: a worker silent for so long has lost its jobs to others. stuck_seconds: a
    worker that makes no step for so long is ended. internal_urls: whether addresses inside the network may be fetched.
    policy: "module:name" of a `moderation.Policy`. marks: whether pictures are watermarked and signed; signer: files
    with certificates and key, else a test certificate of the server's own. batch: how many pictures may run together.
    """

    data: Path
    database: str
    public_url: str
    models: tuple[ServedModel, ...] = ()
    precision: str = "auto"
    device: str = "auto"
    memory: str | None = None
    keep_seconds: int = 24 * 3600
    lease_seconds: int = 30
    stuck_seconds: int = 600
    batch: int = 1
    internal_urls: bool = False
    blocklist: Path | None = None
    policy: str | None = None
    marks: bool = True
    signer: tuple[str, str] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values = json.loads(text)
        values["data"] = Path(values["data"])
        values["blocklist"] = None if values["blocklist"] is None else Path(values["blocklist"])
        values["models"] = tuple(ServedModel(**model) for model in values["models"])
        values["signer"] = None if values["signer"] is None else tuple(values["signer"])
        return cls(**values)
