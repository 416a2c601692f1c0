"""The tables of the service, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# Times are seconds since 1970, amounts whole thousandths of a credit.
keys = Table(
    "headrace_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", Text, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
    Column("active_limit", Integer, nullable=False),
    Column("models", Text, nullable=False, default=""),  # names apart by spaces; none: all
    Column("priority", Integer, nullable=False),
    Column("balance", BigInteger),  # None: not counted
    # Start-time fair queueing: the virtual time at which this key's last job ends, one for each priority.
    Column("finish_tag", Float, nullable=False, default=0.0),
)

ledger = Table(
    "headrace_ledger",
    metadata,
    Column("reference", String(80), primary_key=True),  # "charge:JOB:ROUND": nothing is entered twice
    Column("key_id", ForeignKey(keys.c.id), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("note", Text, nullable=False, default=""),
)

jobs = Table(
    "headrace_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("key_id", ForeignKey(keys.c.id), nullable=False),
    Column("model", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("work", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tag", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("worker", Text),
    Column("attempt", Integer, nullable=False, default=0),  # counts claims: who holds an older one has lost the job
    Column("losses", Integer, nullable=False, default=0),  # how often a worker died over it
    Column("round", Integer, nullable=False, default=1),  # how often it was asked for
    Column("cost", BigInteger, nullable=False),
    Column("input_mp", Float, nullable=False),
    Column("output_mp", Float, nullable=False),
    Column("units", Float, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=False),
    Column("cancelling", Boolean, nullable=False, default=False),
    Column("result", Text),
    Column("reason", Text),
    Column("webhook_url", Text),
    Column("webhook_secret", Text),
    Column("telling", Float),  # when a worker began to call the webhook
    Index("headrace_jobs_by_turn", "state", "priority", "tag", "created"),
    Index("headrace_jobs_by_key", "key_id", "state"),
    Index("headrace_jobs_by_end", "finished"),
)

previews = Table(
    "headrace_previews",
    metadata,
    Column("job_id", String(36), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

models = Table(
    "headrace_models",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("seconds_per_unit", Float),
)

workers = Table(
    "headrace_workers",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("beat", Float, nullable=False),
    Column("specs", Text, nullable=False),  # JSON
    Column("status", Text, nullable=False),  # JSON: resident model, memory, seconds by stage, counts
)

secrets = Table(
    "headrace_secrets", metadata, Column("name", String(40), primary_key=True), Column("value", LargeBinary)
)
