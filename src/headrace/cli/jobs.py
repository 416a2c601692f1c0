"""`headrace jobs`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from headrace.cli.store import opened_store, store_options
from headrace.cli.terminal import print_table
from headrace.errors import RequestError

_STATES = ("queued", "running", "ready", "error", "cancelled", "request_moderated", "content_moderated")


@click.group()
def jobs() -> None:
    """Look at a server's jobs; cancel, repeat or delete them."""


@jobs.command("list")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these. Repeatable.")
@click.option("--key", "key_id", metavar="ID", help="Only those of this key.")
@click.option("-n", "--count", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@store_options
def list_jobs(
    states: tuple[str, ...], key_id: str | None, count: int, as_json: bool, data: Path | None, database: str | None
) -> None:
    """List jobs, the newest first. Prompts are private and not shown."""
    with opened_store(data, database) as store:
        found = store.jobs(key_id, states, count)
    if as_json:
        rows = [
            {
                "id": job.id,
                "key": job.key_id,
                "model": job.model,
                "state": job.state,
                "created": job.created,
                "started": job.started,
                "finished": job.finished,
                "worker": job.worker,
                "attempt": job.attempt,
                "step": job.step,
                "steps": job.steps,
                "credits": job.cost / 1000,
                "reason": job.reason,
            }
            for job in found
        ]
        click.echo(json.dumps({"jobs": rows}))
        return
    print_table(
        ("id", "key", "model", "state", "created", "steps", "worker", "reason"),
        [
            (
                job.id,
                job.key_id,
                job.model,
                job.state,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created)),
                f"{job.step}/{job.steps}",
                job.worker or "",
                job.reason or "",
            )
            for job in found
        ],
    )


@jobs.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@store_options
def cancel(job_ids: tuple[str, ...], data: Path | None, database: str | None) -> None:
    """End jobs that wait, and stop those that are being made at their next step. What they cost is refunded."""
    with opened_store(data, database) as store:
        for job_id in job_ids:
            if not store.cancel(job_id):
                raise RequestError(f"There is no unfinished job {job_id}.")


@jobs.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@store_options
def retry(job_ids: tuple[str, ...], data: Path | None, database: str | None) -> None:
    """Put jobs that failed or were cancelled back into the queue; they are charged for again."""
    with opened_store(data, database) as store:
        for job_id in job_ids:
            if not store.retry(job_id):
                raise RequestError(f"There is no failed or cancelled job {job_id}.")


@jobs.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@store_options
def delete(job_ids: tuple[str, ...], data: Path | None, database: str | None) -> None:
    """Remove ended jobs: their prompts, what they were given, their pictures. The ledger keeps what they cost."""
    with opened_store(data, database) as store:
        from headrace.server.files import Files
        from headrace.server.start import DATA

        files = Files(data or DATA, "", b"")
        for job_id in job_ids:
            if store.forget(job_id) is None:
                raise RequestError(f"There is no ended job {job_id}.")
            files.remove(job_id)
