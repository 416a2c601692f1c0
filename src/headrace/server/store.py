"""All that the service must not lose, behind one small interface: keys, credits, jobs, models, workers.

One database: SQLite within one machine, PostgreSQL between several. Every method is one transaction.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Row, create_engine, delete, event, func, insert, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import ConnectionPoolEntry

from headrace.server import tables
from headrace.server.prices import THOUSANDTHS, Cost
from headrace.server.refusals import Refused
from headrace.server.work import Work

State = Literal["queued", "running", "ready", "error", "cancelled", "request_moderated", "content_moderated"]
UNFINISHED: tuple[State, ...] = ("queued", "running")

# The key of a server that has none and listens on loopback only.
LOCAL = "local"
ACTIVE_LIMIT = 24
PRIORITIES = {"high": 0, "normal": 1, "low": 2}

# After so many workers died over a job, it is taken to be the cause.
MAX_LOSSES = 3
# How far down the queue a worker looks for a job of the model that it has in memory, and for how long it may pass over
# the first in the queue for that.
AFFINITY_REACH = 16
AFFINITY_SECONDS = 20.0


@dataclass(frozen=True)
class Key:
    """A key as it is kept: never the secret, only its salted hash. balance: in thousandths, None where not counted."""

    id: str
    name: str
    salt: bytes
    hash: bytes
    created: float
    revoked: float | None
    active_limit: int
    models: str
    priority: int
    balance: int | None

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models.split()


@dataclass(frozen=True)
class Result:
    """A finished picture: its file's name in the store of results, and what a client is told of it."""

    file: str
    output_format: str
    width: int
    height: int
    prompt: str
    seed: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """A job as it stands. reason: of an error or a moderation. step: how many are done."""

    id: str
    key_id: str
    model: str
    spec: str
    work: Work
    state: State
    priority: int
    tag: float
    created: float
    started: float | None
    finished: float | None
    worker: str | None
    attempt: int
    losses: int
    cost: int
    input_mp: float
    output_mp: float
    units: float
    step: int
    steps: int
    cancelling: bool
    result: Result | None
    reason: str | None
    webhook_url: str | None
    webhook_secret: str | None

    @property
    def ended(self) -> bool:
        return self.state not in UNFINISHED


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. seconds: what it took to compute, where it is known."""

    state: State
    result: Result | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a client's request is completed and checked with."""

    name: str
    spec: str
    steps: int
    guidance: float
    default_size: tuple[int, int]
    reference_limit: int
    distilled: bool


@dataclass(frozen=True)
class Turn:
    """Where a job stands: position 0 runs. seconds: until it is done, as predicted; None where nothing is known yet."""

    position: int
    seconds: float | None


class Store:
    """Opens the database, and makes its tables where there are none. url: SQLAlchemy's."""

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite"):
            self._writer = create_engine(url, connect_args={"timeout": 30})
            self._reader = create_engine(url, connect_args={"timeout": 30}, isolation_level="AUTOCOMMIT")
            event.listen(self._writer, "connect", _prepare_sqlite)
            event.listen(self._reader, "connect", _prepare_sqlite)
            event.listen(self._writer, "begin", _begin_immediately)
        else:
            self._writer = create_engine(url, pool_size=10, max_overflow=30, pool_pre_ping=True)
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
        self._insert = sqlite.insert if url.startswith("sqlite") else postgresql.insert
        with self._writing() as connection:
            if not url.startswith("sqlite"):  # several processes may make the tables at once
                connection.execute(text("SELECT pg_advisory_xact_lock(4839201)"))
            tables.metadata.create_all(connection)
            local = {"name": LOCAL, "salt": b"", "hash": b"", "created": time.time(), "active_limit": 10**6}
            row = {**local, "models": "", "priority": PRIORITIES["normal"], "finish_tag": 0.0}
            connection.execute(self._insert(tables.keys).values(id=LOCAL, **row).on_conflict_do_nothing())

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._reader.connect() as connection:
            yield connection

    # Keys and credits

    def add_key(self, key: Key) -> None:
        with self._writing() as connection:
            connection.execute(insert(tables.keys).values(**asdict(key), finish_tag=0.0))

    def key(self, key_id: str) -> Key | None:
        with self._reading() as connection:
            row = connection.execute(select(tables.keys).where(tables.keys.c.id == key_id)).first()
        return None if row is None else _key(row)

    def all_keys(self) -> list[Key]:
        """Those that were added, the oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                select(tables.keys).where(tables.keys.c.id != LOCAL).order_by(tables.keys.c.created)
            )
            return [_key(row) for row in rows]

    def has_keys(self) -> bool:
        """Whether there is a key that opens anything."""
        wanted = tables.keys.c.revoked.is_(None) & (tables.keys.c.id != LOCAL)
        with self._reading() as connection:
            return connection.execute(select(tables.keys.c.id).where(wanted).limit(1)).first() is not None

    def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key, not yet revoked."""
        wanted = (tables.keys.c.id == key_id) & tables.keys.c.revoked.is_(None) & (tables.keys.c.id != LOCAL)
        with self._writing() as connection:
            return bool(connection.execute(update(tables.keys).where(wanted).values(revoked=time.time())).rowcount)

    def grant(self, key_id: str, thousandths: int, note: str = "") -> int:
        """Adds credits to a key, from then on counted, and returns the new balance. Raises Refused for no such key."""
        with self._writing() as connection:
            self._enter(connection, key_id, thousandths, f"grant:{secrets.token_hex(8)}", note)
            balance = connection.execute(select(tables.keys.c.balance).where(tables.keys.c.id == key_id)).scalar()
        if balance is None:
            raise Refused(404, f"There is no key {key_id}.")
        return int(balance)

    def entries(self, key_id: str) -> list[tuple[float, str, int, str]]:
        """The ledger of a key: (time, reference, thousandths, note), the oldest first."""
        with self._reading() as connection:
            columns = tables.ledger.c
            rows = connection.execute(
                select(columns.at, columns.reference, columns.amount, columns.note)
                .where(columns.key_id == key_id)
                .order_by(columns.at)
            )
            return [(row.at, row.reference, row.amount, row.note) for row in rows]

    @staticmethod
    def _enter(connection: Connection, key_id: str, amount: int, reference: str, note: str = "") -> None:
        """One line of the ledger, and the balance with it; a grant is what makes a key's credits be counted."""
        known = tables.keys.c.id == key_id
        balance = tables.keys.c.balance
        if reference.startswith("grant:"):
            if not connection.execute(
                update(tables.keys).where(known).values(balance=func.coalesce(balance, 0) + amount)
            ).rowcount:
                raise Refused(404, f"There is no key {key_id}.")
        else:
            connection.execute(update(tables.keys).where(known, balance.isnot(None)).values(balance=balance + amount))
        connection.execute(
            insert(tables.ledger).values(key_id=key_id, amount=amount, reference=reference, at=time.time(), note=note)
        )

    # Models

    def publish(self, models: Sequence[ModelFacts]) -> None:
        """Makes models known to every process; they stay known while no worker runs, as their jobs can wait."""
        with self._writing() as connection:
            for rank, model in enumerate(models):
                values = {"spec": model.spec, "facts": json.dumps(asdict(model)), "rank": rank}
                connection.execute(
                    self._insert(tables.models)
                    .values(name=model.name, **values)
                    .on_conflict_do_update(index_elements=["name"], set_=values)
                )

    def models(self) -> list[ModelFacts]:
        """Those that were published; the first answers for names that none has."""
        with self._reading() as connection:
            rows = connection.execute(select(tables.models).order_by(tables.models.c.rank, tables.models.c.name))
            facts = [json.loads(row.facts) for row in rows]
        return [ModelFacts(**{**each, "default_size": tuple(each["default_size"])}) for each in facts]

    # Jobs, as clients see them

    def submit(
        self,
        job_id: str,
        key: Key,
        model: ModelFacts,
        work: Work,
        price: Cost,
        webhook: tuple[str | None, str | None] = (None, None),
        state: State = "queued",
        reason: str | None = None,
    ) -> None:
        """Accepts a job and charges for it, or neither. state: another than queued for one that ends here.

        Its place in the queue is by start-time fair queueing (Goyal, Vin and Cheng, 1996) between the keys of a
        priority: each gets the same share of the computing, whoever asks for more. Raises Refused.
        """
        now = time.time()
        ends = state != "queued"
        with self._writing() as connection:
            row = connection.execute(select(tables.keys).where(tables.keys.c.id == key.id).with_for_update()).one()
            active = self._count(connection, tables.jobs.c.key_id == key.id)
            if active >= row.active_limit:
                raise Refused(
                    429, f"{active} tasks of this key are active, the most it may have; wait for one.", retry_after=1
                )
            if not ends and row.balance is not None and row.balance < price.thousandths:
                raise Refused(
                    402,
                    f"This costs {price.credits:g} credits, and the key has {row.balance / THOUSANDTHS:g}; "
                    "ask whoever runs this server for more.",
                )
            tag = max(self._virtual_time(connection, row.priority), row.finish_tag)
            connection.execute(
                insert(tables.jobs).values(
                    id=job_id,
                    key_id=key.id,
                    model=model.name,
                    spec=model.spec,
                    work=work.to_json(),
                    state=state,
                    reason=reason,
                    priority=row.priority,
                    tag=tag,
                    created=now,
                    finished=now if ends else None,
                    cost=0 if ends else price.thousandths,
                    input_mp=price.input_mp,
                    output_mp=price.output_mp,
                    units=work.units,
                    steps=work.steps,
                    webhook_url=webhook[0],
                    webhook_secret=webhook[1],
                )
            )
            if not ends:
                known = tables.keys.c.id == key.id
                connection.execute(update(tables.keys).where(known).values(finish_tag=tag + work.units))
                self._enter(connection, key.id, -price.thousandths, f"charge:{job_id}:1", model.name)

    @staticmethod
    def _virtual_time(connection: Connection, priority: int) -> float:
        """The start tag of the job that began last, or of the first that waits."""
        jobs = tables.jobs.c
        begun = connection.execute(
            select(func.max(jobs.tag)).where(jobs.state == "running", jobs.priority == priority)
        ).scalar()
        if begun is None:
            begun = connection.execute(
                select(jobs.tag)
                .where(jobs.state.notin_(UNFINISHED), jobs.priority == priority)
                .order_by(jobs.finished.desc())
                .limit(1)
            ).scalar()
        return float(begun or 0.0)

    @staticmethod
    def _count(connection: Connection, *conditions: Any) -> int:
        counted = select(func.count()).select_from(tables.jobs).where(tables.jobs.c.state.in_(UNFINISHED), *conditions)
        return int(connection.execute(counted).scalar() or 0)

    def job(self, job_id: str) -> Job | None:
        with self._reading() as connection:
            row = connection.execute(select(tables.jobs).where(tables.jobs.c.id == job_id)).first()
        return None if row is None else _job(row)

    def jobs(
        self, key_id: str | None = None, states: Sequence[str] = (), limit: int = 100, offset: int = 0
    ) -> list[Job]:
        """The newest first."""
        query = select(tables.jobs).order_by(tables.jobs.c.created.desc()).limit(limit).offset(offset)
        if key_id is not None:
            query = query.where(tables.jobs.c.key_id == key_id)
        if states:
            query = query.where(tables.jobs.c.state.in_(states))
        with self._reading() as connection:
            return [_job(row) for row in connection.execute(query)]

    def progress(self, job_ids: Sequence[str]) -> dict[str, tuple[State, int]]:
        """State and steps done of jobs, one question for all who watch."""
        columns = tables.jobs.c
        with self._reading() as connection:
            rows = connection.execute(select(columns.id, columns.state, columns.step).where(columns.id.in_(job_ids)))
            return {row.id: (row.state, row.step) for row in rows}

    def preview(self, job_id: str) -> tuple[int, bytes] | None:
        """The last preview: the step after which it was taken, from 1, and a JPEG file."""
        with self._reading() as connection:
            row = connection.execute(select(tables.previews).where(tables.previews.c.job_id == job_id)).first()
        return None if row is None else (row.step, row.data)

    def turn(self, job: Job) -> Turn:
        """A queued or running job's place."""
        columns = tables.jobs.c
        turn = tuple_(columns.priority, columns.tag, columns.created)
        ahead = (columns.state == "running") | (
            (columns.state == "queued") & (turn < tuple_(job.priority, job.tag, job.created))
        )
        with self._reading() as connection:
            running = job.state == "running"
            count, left = (
                (0, 0.0)
                if running
                else connection.execute(
                    select(func.count(), func.sum(columns.units * (1.0 - 1.0 * columns.step / columns.steps))).where(
                        ahead, columns.spec == job.spec
                    )
                ).one()
            )
            rate = connection.execute(
                select(tables.models.c.seconds_per_unit).where(tables.models.c.name == job.model)
            ).scalar()
            fresh = tables.workers.c.beat > time.time() - 60
            hands = connection.execute(select(func.count()).select_from(tables.workers).where(fresh)).scalar() or 1
        own = job.units * (1 - job.step / job.steps)
        seconds = None if rate is None else rate * (float(left or 0) / hands + own)
        return Turn(int(count), seconds)

    def cancel(self, job_id: str) -> bool:
        """Ends a queued job, or has its worker stop at the next step; whether there was one to cancel."""
        with self._writing() as connection:
            row = self._locked(connection, job_id)
            if row is None or row.state not in UNFINISHED:
                return False
            if row.state == "running":
                connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(cancelling=True))
            else:
                self._end(connection, row, Outcome("cancelled", reason="Cancelled before it began."))
            return True

    def retry(self, job_id: str) -> bool:
        """Puts a job that failed or was cancelled back into the queue, and charges again; whether there was one."""
        with self._writing() as connection:
            row = self._locked(connection, job_id)
            if row is None or row.state not in ("error", "cancelled"):
                return False
            fresh = {"state": "queued", "reason": None, "finished": None, "started": None, "losses": 0, "step": 0}
            connection.execute(
                update(tables.jobs)
                .where(tables.jobs.c.id == job_id)
                .values(**fresh, cancelling=False, round=row.round + 1)
            )
            self._enter(connection, row.key_id, -row.cost, f"charge:{job_id}:{row.round + 1}", row.model)
            return True

    def forget(self, job_id: str) -> Job | None:
        """Removes an ended job with its prompt; the ledger keeps what it cost. Returns it, or None where there is none.

        Its pictures are the caller's to remove.
        """
        with self._writing() as connection:
            row = self._locked(connection, job_id)
            if row is None or row.state in UNFINISHED:
                return None
            connection.execute(delete(tables.jobs).where(tables.jobs.c.id == job_id))
            return _job(row)

    def ended_before(self, moment: float, limit: int = 200) -> list[str]:
        """Jobs that may be forgotten."""
        columns = tables.jobs.c
        with self._reading() as connection:
            return list(connection.execute(select(columns.id).where(columns.finished < moment).limit(limit)).scalars())

    # Jobs, as workers see them

    def claim(self, worker: str, specs: Sequence[str], resident: str | None, limit: int = 1) -> list[Job]:
        """Takes the next job, and with it up to `limit` that can run together with it; none where none waits.

        specs: what the worker can load; resident: what it has loaded. Of the first few in the queue one with that
        model goes before, but no job of the same priority waits longer than `AFFINITY_SECONDS` for this.
        """
        columns = tables.jobs.c
        waiting = (
            select(tables.jobs)
            .where(columns.state == "queued", columns.spec.in_(specs))
            .order_by(columns.priority, columns.tag, columns.created)
            .limit(AFFINITY_REACH)
        )
        with self._reading() as connection:  # nobody has to wait for a worker that finds nothing
            if connection.execute(waiting.with_only_columns(columns.id).limit(1)).first() is None:
                return []
        with self._writing() as connection:
            rows = connection.execute(waiting.with_for_update(skip_locked=True)).all()
            if not rows:
                return []
            now = time.time()
            first = rows[0]
            if first.spec != resident and now - first.created < AFFINITY_SECONDS:
                first = next((r for r in rows if r.spec == resident and r.priority == first.priority), first)
            key = Work.from_json(first.work).batch_key
            others = (r for r in rows if r is not first and r.spec == first.spec and key is not None)
            chosen = [first, *(r for r in others if Work.from_json(r.work).batch_key == key)][:limit]
            for row in chosen:
                values = {"state": "running", "worker": worker, "started": now, "step": 0}
                connection.execute(
                    update(tables.jobs).where(columns.id == row.id).values(**values, attempt=row.attempt + 1)
                )
            taken = connection.execute(select(tables.jobs).where(columns.id.in_([row.id for row in chosen])))
            return [_job(row) for row in taken]

    def report(self, job_id: str, attempt: int, step: int, preview: bytes | None) -> None:
        """How far an attempt is, and how the picture looks then."""
        columns = tables.jobs.c
        mine = (columns.id == job_id) & (columns.attempt == attempt) & (columns.state == "running")
        with self._writing() as connection:
            if connection.execute(update(tables.jobs).where(mine).values(step=step)).rowcount and preview is not None:
                values = {"step": step, "data": preview}
                connection.execute(
                    self._insert(tables.previews)
                    .values(job_id=job_id, **values)
                    .on_conflict_do_update(index_elements=["job_id"], set_=values)
                )

    def stopped(self, attempts: Mapping[str, int]) -> set[str]:
        """Which of a worker's attempts are to be stopped: cancelled, or no longer its own."""
        columns = tables.jobs.c
        with self._reading() as connection:
            rows = connection.execute(
                select(columns.id, columns.attempt, columns.state, columns.cancelling).where(
                    columns.id.in_([*attempts])
                )
            )
            going = {
                row.id
                for row in rows
                if row.attempt == attempts[row.id] and row.state == "running" and not row.cancelling
            }
        return set(attempts) - going

    def holds(self, job_id: str, attempt: int) -> Job | None:
        """The job, where this attempt is still the one that counts."""
        job = self.job(job_id)
        return job if job is not None and job.attempt == attempt and job.state == "running" else None

    def settle(self, job_id: str, attempt: int, outcome: Outcome) -> bool:
        """Ends a job, once: False where this attempt no longer counts. What brought no picture is refunded."""
        with self._writing() as connection:
            row = self._locked(connection, job_id)
            if row is None or row.attempt != attempt or row.state != "running":
                return False
            self._end(connection, row, outcome)
            if outcome.result is not None:
                self._learn_rate(connection, row, outcome.result.seconds)
            return True

    def untold(self, again_after: float, limit: int = 20) -> list[Job]:
        """Takes ended jobs whose webhook has not been called, or was begun to be called so many seconds ago."""
        columns = tables.jobs.c
        due = columns.telling.is_(None) | (columns.telling < time.time() - again_after)
        wanted = select(tables.jobs).where(columns.webhook_url.isnot(None), columns.finished.isnot(None), due)
        with self._reading() as connection:
            if connection.execute(wanted.limit(1)).first() is None:
                return []
        with self._writing() as connection:
            rows = connection.execute(wanted.limit(limit).with_for_update(skip_locked=True)).all()
            mine = columns.id.in_([row.id for row in rows])
            connection.execute(update(tables.jobs).where(mine).values(telling=time.time()))
            return [_job(row) for row in rows]

    def told(self, job_id: str) -> None:
        """The webhook has been called, or cannot be; its address and secret are not kept any longer."""
        known = tables.jobs.c.id == job_id
        with self._writing() as connection:
            connection.execute(update(tables.jobs).where(known).values(webhook_url=None, webhook_secret=None))

    def give_back(self, job_id: str, attempt: int) -> None:
        """Returns a job to its place in the queue, as a worker does that is to end."""
        columns = tables.jobs.c
        mine = (columns.id == job_id) & (columns.attempt == attempt) & (columns.state == "running")
        with self._writing() as connection:
            connection.execute(update(tables.jobs).where(mine).values(state="queued", worker=None, step=0))

    def held_by(self, worker: str) -> list[Job]:
        """The running jobs of a worker that starts again, each counted as lost once more; ends those lost too often."""
        held = []
        with self._writing() as connection:
            mine = (tables.jobs.c.worker == worker) & (tables.jobs.c.state == "running")
            for row in connection.execute(select(tables.jobs).where(mine).with_for_update()).all():
                if not self._lose(connection, row):
                    held.append(_job(row))
        return held

    def reap(self, silent_seconds: float) -> int:
        """Puts the jobs of workers that have been silent back into the queue; how many."""
        with self._writing() as connection:
            alive = select(tables.workers.c.id).where(tables.workers.c.beat > time.time() - silent_seconds)
            lost = (tables.jobs.c.state == "running") & tables.jobs.c.worker.notin_(alive)
            rows = connection.execute(select(tables.jobs).where(lost).with_for_update()).all()
            for row in rows:
                if not self._lose(connection, row):
                    connection.execute(
                        update(tables.jobs)
                        .where(tables.jobs.c.id == row.id)
                        .values(state="queued", worker=None, step=0)
                    )
            return len(rows)

    def _lose(self, connection: Connection, row: Row[Any]) -> bool:
        """Counts a loss; True where it was the last one, and the job ended with it."""
        if row.losses + 1 >= MAX_LOSSES:
            self._end(connection, row, Outcome("error", reason=f"{MAX_LOSSES} workers died over it, one by one."))
            return True
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == row.id).values(losses=row.losses + 1))
        return False

    @staticmethod
    def _locked(connection: Connection, job_id: str) -> Row[Any] | None:
        return connection.execute(select(tables.jobs).where(tables.jobs.c.id == job_id).with_for_update()).first()

    def _end(self, connection: Connection, row: Row[Any], outcome: Outcome) -> None:
        values = {
            "state": outcome.state,
            "finished": time.time(),
            "reason": outcome.reason,
            "result": None if outcome.result is None else json.dumps(asdict(outcome.result)),
            "step": row.steps if outcome.state == "ready" else row.step,
        }
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == row.id).values(**values))
        connection.execute(delete(tables.previews).where(tables.previews.c.job_id == row.id))
        if outcome.state != "ready" and row.cost:
            self._enter(connection, row.key_id, row.cost, f"refund:{row.id}:{row.round}", outcome.state)

    @staticmethod
    def _learn_rate(connection: Connection, row: Row[Any], seconds: float) -> None:
        """Predicted times follow the last twenty or so jobs of a model."""
        known = tables.models.c.name == row.model
        rate = seconds / row.units
        before = connection.execute(select(tables.models.c.seconds_per_unit).where(known)).scalar()
        rate = rate if before is None else before + (rate - before) / 10
        connection.execute(update(tables.models).where(known).values(seconds_per_unit=rate))

    # Workers

    def beat(self, worker: str, specs: Sequence[str], status: Mapping[str, Any]) -> None:
        """A worker is alive, and says how it is."""
        values = {"beat": time.time(), "specs": json.dumps(list(specs)), "status": json.dumps(dict(status))}
        with self._writing() as connection:
            connection.execute(
                self._insert(tables.workers)
                .values(id=worker, **values)
                .on_conflict_do_update(index_elements=["id"], set_=values)
            )

    def leave(self, worker: str) -> None:
        """A worker ends in order."""
        with self._writing() as connection:
            connection.execute(delete(tables.workers).where(tables.workers.c.id == worker))

    def workers(self, silent_seconds: float) -> dict[str, dict[str, Any]]:
        """Those alive, with what they last said."""
        fresh = tables.workers.c.beat > time.time() - silent_seconds
        with self._reading() as connection:
            rows = connection.execute(select(tables.workers).where(fresh))
            return {row.id: json.loads(row.status) for row in rows}

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each model and state."""
        columns = tables.jobs.c
        with self._reading() as connection:
            rows = connection.execute(
                select(columns.model, columns.state, func.count()).group_by(columns.model, columns.state)
            )
            return {(model, state): count for model, state, count in rows}

    def secret(self, name: str) -> bytes:
        """32 random bytes that all processes of this server share, made when first asked for."""
        with self._writing() as connection:
            connection.execute(
                self._insert(tables.secrets).values(name=name, value=secrets.token_bytes(32)).on_conflict_do_nothing()
            )
            value = connection.execute(select(tables.secrets.c.value).where(tables.secrets.c.name == name)).scalar_one()
        return bytes(value)


def database_url(place: str | None, data: Path) -> str:
    """SQLAlchemy's URL of a database named on the command line; without one, of the file in the data folder."""
    if place is None:
        return f"sqlite:///{data.absolute() / 'headrace.sqlite'}"
    if place.startswith(("postgresql://", "postgres://")):
        return "postgresql+psycopg://" + place.split("://", 1)[1]
    raise Refused(400, f"The database {place} is not known; give postgresql://USER@HOST/NAME, or none for SQLite.")


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediately(connection: Connection) -> None:
    # A transaction that reads and then writes would otherwise find at its end that somebody wrote meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _key(row: Row[Any]) -> Key:
    return Key(**{name: row._mapping[name] for name in Key.__dataclass_fields__})


def _job(row: Row[Any]) -> Job:
    values = {name: row._mapping[name] for name in Job.__dataclass_fields__}
    values["work"] = Work.from_json(values["work"])
    if values["result"] is not None:
        values["result"] = Result(**json.loads(values["result"]))
    return Job(**values)
