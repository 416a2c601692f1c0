"""What the service must not lose: credits, jobs and their turns, without HTTP and without a model."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.server import tables
from headrace.server.doors import Doors, make_key, presented
from headrace.server.prices import PRICES, Cost, cost
from headrace.server.refusals import Refused
from headrace.server.store import LOCAL, Job, Key, ModelFacts, Outcome, Result, Store, database_url
from headrace.server.work import Work

SPRITE = ModelFacts("flux-2-klein-4b", "sprite", 4, 1.0, (128, 128), 10, True)
OTHER = ModelFacts("flux-2-pro", "dev", 50, 4.0, (1024, 1024), 10, False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(database_url(None, tmp_path))
    store.publish([SPRITE, OTHER])
    yield store
    store.close()


def new_key(store: Store, name: str = "one", **limits: int | str) -> Key:
    _, key = make_key(name, **limits)  # type: ignore[arg-type]
    store.add_key(key)
    return key


def submit(store: Store, key: Key, model: ModelFacts = SPRITE, **work: int) -> str:
    job_id = str(uuid.uuid4())
    asked = Work(**({"prompt": "a", "seed": 1, "width": 64, "height": 64, "steps": 4} | work))  # type: ignore[arg-type]
    store.submit(job_id, key, model, asked, cost(model.name, asked.width, asked.height))
    return job_id


def made(seconds: float = 1.0) -> Outcome:
    return Outcome("ready", Result("file", "PNG", 64, 64, "a", 1, seconds))


def take(store: Store, resident: str | None = None, limit: int = 1) -> list[Job]:
    return store.claim("worker", ["sprite", "dev"], resident, limit)


def balance(store: Store, key: Key) -> int | None:
    found = store.key(key.id)
    assert found is not None
    return found.balance


@pytest.mark.parametrize(
    ("model", "size", "inputs", "credits"),
    [
        ("flux-2-klein-4b", (1024, 1024), 0, 1.4),
        ("flux-2-klein-4b", (1024, 1024), 1, 1.5),
        ("flux-2-klein-9b", (1024, 1024), 1, 1.7),
        ("flux-2-pro", (1024, 1024), 1, 4.5),
        ("flux-2-flex", (1024, 1024), 1, 10),
        ("flux-2-max", (1024, 1024), 3, 16),
        ("flux-2-pro", (1040, 1024), 0, 4.5),
        ("flux-2-pro", (64, 64), 0, 3),
        ("flux-2-max", (2048, 2048), 0, 16),
    ],
)
def test_prices_are_the_published_ones(model: str, size: tuple[int, int], inputs: int, credits: float) -> None:  # noqa: A002
    assert cost(model, *size, [(1024, 1024)] * inputs).credits == credits


def test_megapixels_are_reported_with_two_decimals() -> None:
    assert cost("flux-2-pro", 1024, 1024, [(512, 512)]) == Cost(4500, 0.26, 1.05)
    assert set(PRICES) >= {SPRITE.name, OTHER.name}


def test_a_job_is_charged_once_and_refunded_once(store: Store) -> None:
    key = new_key(store)
    assert store.grant(key.id, 3000) == 3000
    first, second = submit(store, key), submit(store, key)
    assert balance(store, key) == 200
    with pytest.raises(Refused, match=r"costs 1\.4 credits") as refused:
        submit(store, key)
    assert refused.value.status == 402
    [job] = take(store)
    assert store.settle(job.id, job.attempt, Outcome("error", reason="no"))
    assert not store.settle(job.id, job.attempt, made())
    assert balance(store, key) == 1600
    assert store.cancel(second)
    assert not store.cancel(second)
    assert balance(store, key) == 3000
    assert store.retry(first)
    assert not store.retry(first)
    assert balance(store, key) == 1600
    assert store.settle(*next((job.id, job.attempt) for job in take(store)), made())
    assert balance(store, key) == 1600
    assert sum(amount for _, _, amount, _ in store.entries(key.id)) == 1600


def test_only_the_last_attempt_counts(store: Store) -> None:
    key = new_key(store)
    submit(store, key)
    [first] = take(store)
    assert store.reap(silent_seconds=0) == 1
    [second] = take(store)
    assert (second.id, second.attempt) == (first.id, first.attempt + 1)
    assert store.stopped({first.id: first.attempt}) == {first.id}
    assert not store.settle(first.id, first.attempt, made())
    assert store.settle(second.id, second.attempt, made())
    found = store.job(first.id)
    assert found is not None
    assert found.state == "ready"


def test_a_job_over_which_workers_die_ends_in_an_error(store: Store) -> None:
    key = new_key(store)
    store.grant(key.id, 1400)
    job_id = submit(store, key)
    take(store)
    assert [job.id for job in store.held_by("worker")] == [job_id]
    assert [job.id for job in store.held_by("worker")] == [job_id]
    assert store.held_by("worker") == []
    job = store.job(job_id)
    assert job is not None
    assert job.state == "error"
    assert "workers died" in (job.reason or "")
    assert balance(store, key) == 1400


def test_a_worker_that_beats_keeps_its_jobs(store: Store) -> None:
    submit(store, new_key(store))
    take(store)
    store.beat("worker", ["sprite"], {})
    assert store.reap(silent_seconds=30) == 0
    store.leave("worker")
    assert store.reap(silent_seconds=30) == 1


def test_keys_share_the_computing_whoever_asks_for_more(store: Store) -> None:
    """One key with twelve jobs, and two that always have one: each is served a third of the time."""
    greedy, *others = (new_key(store, name) for name in ("greedy", "patient", "late"))
    for _ in range(12):
        submit(store, greedy)
    for other in others:
        submit(store, other)
    served: Counter[str] = Counter()
    for _ in range(12):
        [job] = take(store)
        store.settle(job.id, job.attempt, made())
        served[job.key_id] += 1
        if job.key_id != greedy.id:
            submit(store, next(other for other in others if other.id == job.key_id))
    assert all(3 <= count <= 5 for count in served.values()), served


def test_a_larger_picture_counts_for_more(store: Store) -> None:
    large, small = new_key(store, "large"), new_key(store, "small")
    for _ in range(6):
        submit(store, large, width=512, height=512)
        submit(store, small)
    order = []
    for _ in range(6):
        [job] = take(store)
        order.append(job.key_id)
        store.settle(job.id, job.attempt, made())
    assert order.count(small.id) > order.count(large.id)


def test_priority_goes_before_turn(store: Store) -> None:
    low, high = new_key(store, "low", priority="low"), new_key(store, "high", priority="high")
    submit(store, low)
    wanted = submit(store, high)
    assert [job.id for job in take(store)] == [wanted]


def test_a_worker_prefers_the_model_it_has_but_not_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key(store)
    first = submit(store, key, OTHER)
    second = submit(store, key, SPRITE)
    assert [job.id for job in take(store, resident="sprite")] == [second]
    submit(store, key, SPRITE)
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert [job.id for job in take(store, resident="sprite")] == [first]


def test_a_worker_takes_only_what_it_can_make(store: Store) -> None:
    submit(store, new_key(store), OTHER)
    assert store.claim("worker", ["sprite"], None) == []


def test_only_alike_jobs_are_taken_together(store: Store) -> None:
    key = new_key(store)
    alike = [submit(store, key, seed=seed) for seed in range(3)]
    submit(store, key, steps=5)
    submit(store, key, OTHER)
    assert {job.id for job in take(store, limit=8)} == set(alike)
    assert len(take(store, limit=8)) == 1


def test_a_key_has_so_many_active_tasks(store: Store) -> None:
    key = new_key(store)
    for _ in range(24):
        submit(store, key)
    with pytest.raises(Refused) as refused:
        submit(store, key)
    assert refused.value.status == 429
    [job] = take(store)
    store.settle(job.id, job.attempt, made())
    submit(store, key)


def test_turns_are_counted_and_foretold(store: Store) -> None:
    key = new_key(store)
    jobs = [submit(store, key) for _ in range(3)]
    [running] = take(store)
    last = store.job(jobs[2])
    assert last is not None
    assert store.turn(last).position == 2
    assert store.turn(last).seconds is None
    store.settle(running.id, running.attempt, made(seconds=2.0))
    turn = store.turn(last)
    assert turn.position == 1
    assert turn.seconds == pytest.approx(4.0)


def test_what_is_forgotten_is_gone(store: Store) -> None:
    key = new_key(store)
    job_id = submit(store, key)
    assert store.forget(job_id) is None  # not ended
    [job] = take(store)
    store.settle(job.id, job.attempt, made())
    assert store.ended_before(time.time() + 1) == [job_id]
    assert store.forget(job_id) is not None
    assert store.job(job_id) is None
    assert [reference for _, reference, _, _ in store.entries(key.id)] == [f"charge:{job_id}:1"]


def test_webhooks_are_called_by_one_and_then_forgotten(store: Store) -> None:
    key = new_key(store)
    job_id = str(uuid.uuid4())
    work = Work(prompt="a", seed=1, width=64, height=64, steps=4)
    store.submit(job_id, key, SPRITE, work, cost(SPRITE.name, 64, 64), ("http://example.com", "secret"))
    assert store.untold(60) == []
    store.cancel(job_id)
    assert [job.id for job in store.untold(60)] == [job_id]
    assert store.untold(60) == []
    store.told(job_id)
    job = store.job(job_id)
    assert job is not None
    assert (job.webhook_url, job.webhook_secret) == (None, None)


def test_keys_are_hashed_and_can_be_revoked(store: Store) -> None:
    doors = Doors(store)
    assert doors.admit({"host": "localhost:8000"}).id == LOCAL
    for host in ("evil.example", "127.0.0.1.evil.example:80", "", "[::2]:80"):
        with pytest.raises(Refused, match="only as localhost"):
            doors.admit({"host": host})
    shown, key = make_key("one")
    store.add_key(key)
    secret = shown.rpartition("_")[2] if shown.count("_") == 2 else shown[16:]
    assert all(secret.encode() not in path.read_bytes() for path in Path(store.url[10:]).parent.iterdir())
    assert key.hash not in (secret.encode(), b"")
    for _ in range(2):  # the second time without scrypt
        assert doors.admit({"x-key": shown, "host": "anywhere"}).id == key.id
    for wrong in ("", shown[:-1] + "!", shown[:-1] + ("A" if shown[-1] != "A" else "B"), "hr_" + "0" * 12 + shown[15:]):
        with pytest.raises(Refused) as refused:
            doors.admit({"x-key": wrong, "host": "localhost"})
        assert refused.value.status == 403
    assert store.revoke_key(key.id)
    assert not store.revoke_key(LOCAL)
    store.add_key(make_key("two")[1])
    with pytest.raises(Refused):
        doors.admit({"x-key": shown})


def test_every_dialect_shows_its_key_in_its_way() -> None:
    assert presented({"x-key": "a"}) == "a"
    assert presented({"x-api-key": "a"}) == "a"
    assert presented({"authorization": "Bearer a"}) == "a"
    assert presented({"authorization": "Token a"}) == "a"
    assert presented({"authorization": "Basic dXNlcjph"}) == "a"
    assert presented({"authorization": "Basic !"}) is None
    assert presented({}) is None


def test_databases_are_named_as_people_write_them(tmp_path: Path) -> None:
    assert database_url("postgres://me@db/x", tmp_path) == "postgresql+psycopg://me@db/x"
    with pytest.raises(Refused, match="not known"):
        database_url("mysql://db", tmp_path)
    assert {"headrace_jobs", "headrace_ledger"} <= set(tables.metadata.tables)
