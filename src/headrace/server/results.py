"""What a client of Black Forest Labs' API is told of a job: the body of get_result and of webhooks."""

from __future__ import annotations

from typing import Any

from headrace.server.files import Files
from headrace.server.prices import THOUSANDTHS
from headrace.server.store import Job

# Six words, and no others: clients raise on any they do not know.
STATUS = {
    "queued": "Pending",
    "running": "Pending",
    "ready": "Ready",
    "error": "Error",
    "cancelled": "Error",
    "request_moderated": "Request Moderated",
    "content_moderated": "Content Moderated",
}


def task(job: Job, files: Files) -> dict[str, Any]:
    """A job as a ResultResponse."""
    body: dict[str, Any] = {
        "id": job.id,
        "status": STATUS[job.state],
        "result": None,
        "progress": job.step / job.steps,
        "details": None,
        "preview": None,
    }
    if job.result is not None and job.started is not None and job.finished is not None:
        body |= {
            "result": {
                "sample": files.link(job.result.file),
                "prompt": job.result.prompt,
                "seed": job.result.seed,
                "start_time": job.started,
                "end_time": job.finished,
                "duration": job.finished - job.started,
            },
            "progress": 1.0,
            "cost": job.cost / THOUSANDTHS,
            "input_mp": job.input_mp,
            "output_mp": job.output_mp,
        }
    elif job.state in ("error", "cancelled"):
        body["details"] = {"error": job.reason}
    elif job.ended:
        body["details"] = {"Moderation Reasons": (job.reason or "").split(", ")}
    return body


def not_found(job_id: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "status": "Task not found",
        "result": None,
        "progress": None,
        "details": None,
        "preview": None,
    }
