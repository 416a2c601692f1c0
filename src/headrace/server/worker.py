"""The process that makes pictures: one for each device, started and watched by `supervisor`.

An attempt at a job is a DBOS workflow of two steps: `produce` (the picture, written to its file) and `settle` (the job
ends, once). What a step returned is kept, so that a worker that is killed and comes back does not make a picture a
second time; which attempt counts is decided by the store alone. Calling a webhook is a workflow of its own.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, BinaryIO

from dbos import DBOS, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer
from PIL import Image

from headrace.errors import Cancelled, HeadraceError
from headrace.memory.process import peak_bytes, resident_bytes
from headrace.pipeline import Pipeline, Step, load
from headrace.provenance.certificates import local_signer, open_signer
from headrace.provenance.credentials import Ingredient
from headrace.provenance.marking import mark
from headrace.provenance.metadata import encode_with_recipe
from headrace.provenance.register import Register
from headrace.recipe import Recipe
from headrace.server import logs
from headrace.server.files import MEDIA_TYPES, Files
from headrace.server.moderation import load_policies
from headrace.server.refusals import Refused
from headrace.server.results import task
from headrace.server.settings import Settings
from headrace.server.store import Job, Outcome, Result, Store
from headrace.server.webhooks import PAUSES, deliver

# Taken from the queue ahead of use, so that the next picture begins when one ends.
AHEAD = 2
IDLE_SECONDS = 0.05
REPORT_SECONDS = 0.2
BEAT_SECONDS = 1.0
# Looks at a picture on its way take at most this part of the time, where the model has no cheap ones.
PREVIEW_SHARE = 0.05
PREVIEW_SIDE = 512
TELL_AGAIN_SECONDS = 180.0
# How long what DBOS knows of workflows that ended is kept.
WORKFLOW_SECONDS = 60.0

_TITLES = ("input_image", *(f"input_image_{index}" for index in range(2, 100)))

_log = logs.logger("worker")


@dataclass
class Wanted:
    """A picture that a workflow waits for."""

    job: Job
    made: Future[tuple[Image.Image, Recipe, float]] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)
    step: int = 0
    look: Image.Image | None = None
    reported: int = 0


class Worker:
    """One device's worker. beat: called every second while it is well."""

    def __init__(self, settings: Settings, name: str, beat: Callable[[], None]) -> None:
        self._settings = settings
        self._name = name
        self._beat = beat
        self._store = Store(settings.database)
        self._files = Files(settings.data, settings.public_url, self._store.secret("links"))
        self._policies = load_policies(settings.blocklist, settings.policy)
        self._signer = self._register = None
        if settings.marks:
            self._register = Register(settings.data / "register.sqlite")
            chain, secret = settings.signer or (None, None)
            own = settings.data / "signer"
            self._signer = open_signer(chain, secret) if chain and secret else local_signer(own)
        self._specs = sorted({model.spec for model in settings.models})
        self._pipelines: dict[str, Pipeline] = {}
        self._resident: str | None = None
        self._inbox: queue.Queue[Wanted] = queue.Queue()
        self._current: dict[str, Wanted] = {}
        self._together: dict[str, frozenset[str]] = {}
        self._held: set[tuple[str, int]] = set()  # attempts whose picture is not there yet
        self._held_changed = threading.Condition()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._forgot = 0.0
        self._active = time.monotonic()
        self._counts: dict[str, float] = {"pictures": 0, "errors": 0, "generate": 0.0, "deliver": 0.0}
        self._attempt, self._tell = self._set_up_workflows()

    def run(self) -> None:
        """Makes pictures until `drain` is called."""
        DBOS.launch()
        for job in self._store.held_by(self._name):
            self._start(job)
        threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._claim, self._report, self._keep_house)
        ]
        for thread in threads:
            thread.start()
        _log.info("ready", extra={"worker": self._name, "models": self._specs})
        while not (self._draining.is_set() and not self._held):
            self._active = time.monotonic()
            try:
                group = self._next_group(self._inbox.get(timeout=IDLE_SECONDS))
            except queue.Empty:
                continue
            self._make(group)
        self._stopped.set()
        for thread in threads:
            thread.join(timeout=5)
        DBOS.destroy(workflow_completion_timeout_sec=5)
        self._store.leave(self._name)
        self._store.close()

    def drain(self) -> None:
        """Finish what has begun, give back what has not, and end."""
        self._draining.set()

    # The workflows

    def _set_up_workflows(self) -> tuple[Callable[[str, int], None], Callable[[str], None]]:
        """Sets DBOS up with the two workflows, before it is launched."""
        DBOS(
            config={
                "name": "headrace",
                "system_database_url": self._settings.database.replace("+psycopg", ""),
                "executor_id": self._name,
                # A worker of another version goes on with what this one began: the steps are named, not numbered.
                "application_version": "1",
                "log_level": "ERROR",
                # By default DBOS would pickle what steps return.
                "serializer": DBOSPortableJSONSerializer(),
            }
        )
        forever: dict[str, Any] = {
            "retries_allowed": True,
            "max_attempts": 1000,
            "interval_seconds": 0.2,
            "backoff_rate": 1.2,
        }

        @DBOS.step(name="produce")
        def produce(job_id: str, number: int) -> dict[str, Any] | None:
            return self._produce(job_id, number)

        @DBOS.step(name="settle", **forever)
        def settle(job_id: str, number: int, outcome: dict[str, Any]) -> None:
            self._settle(job_id, number, outcome)

        @DBOS.step(name="call")
        def call(job_id: str) -> bool:
            return self._call_webhook(job_id)

        @DBOS.step(name="told", **forever)
        def told(job_id: str) -> None:
            self._store.told(job_id)

        @DBOS.workflow(name="attempt")
        def attempt(job_id: str, number: int) -> None:
            self._held.add((job_id, number))  # one that DBOS goes on with after a restart
            try:
                outcome = produce(job_id, number)
            finally:
                self._let_go(job_id, number)  # here too: a step that was done before a restart is not run
            if outcome is not None:
                settle(job_id, number, outcome)

        @DBOS.workflow(name="tell")
        def tell(job_id: str) -> None:
            for pause in (0, *PAUSES):
                if pause:
                    DBOS.sleep(pause)
                if call(job_id):
                    break
            told(job_id)

        return attempt, tell

    def _start(self, job: Job) -> None:
        self._held.add((job.id, job.attempt))
        with SetWorkflowID(f"attempt:{job.id}:{job.attempt}"):
            DBOS.start_workflow(self._attempt, job.id, job.attempt)

    def _let_go(self, job_id: str, number: int) -> None:
        with self._held_changed:
            self._held.discard((job_id, number))
            self._held_changed.notify_all()

    def _produce(self, job_id: str, number: int) -> dict[str, Any] | None:
        """The outcome of an attempt, as JSON; None where the attempt no longer counts or was given back."""
        try:
            job = self._store.holds(job_id, number)
            if job is None:
                return None
            wanted = Wanted(job)
            self._inbox.put(wanted)
            try:
                image, recipe, seconds = wanted.made.result()
                outcome = self._deliver(job, image, recipe, seconds)
            except Cancelled:
                if not wanted.stop.is_set():
                    self._store.give_back(job_id, number)
                    return None
                outcome = Outcome("cancelled", reason="Cancelled while it was being made.")
            except HeadraceError as error:
                outcome = Outcome("error", reason=str(error))
            except Exception as error:
                _log.exception("failed", extra={"job": job_id})
                outcome = Outcome("error", reason=f"Something in the server went wrong ({type(error).__name__}).")
            self._counts["errors"] += outcome.state == "error"
            return asdict(outcome)
        finally:
            self._let_go(job_id, number)

    def _deliver(self, job: Job, image: Image.Image, recipe: Recipe, seconds: float) -> Outcome:
        """Looks at the picture, writes it, and says where it is."""
        began = time.monotonic()
        reasons = [r for policy in self._policies for r in policy.picture(image, job.work.safety_tolerance)]
        if reasons:
            return Outcome("content_moderated", reason=", ".join(reasons))
        data = self._encode(job, image, recipe)
        name = self._files.keep_result(job.id, job.attempt, job.work.output_format, data)
        self._counts["deliver"] += time.monotonic() - began
        result = Result(name, job.work.output_format, *image.size, recipe.prompt, recipe.seed, seconds)
        return Outcome("ready", result)

    def _encode(self, job: Job, image: Image.Image, recipe: Recipe) -> bytes:
        """The picture's file: with watermark, recipe and signature, and entered in the register by its looks alone."""
        if self._signer is None or self._register is None:
            return encode_with_recipe(image, recipe, job.work.output_format)
        ingredients = [
            Ingredient(data, file_format, title, edited=name == job.work.image)
            for title, name in (*zip(_TITLES, job.work.references, strict=False), ("image", job.work.image))
            if name is not None
            for data in [self._files.input_path(name).read_bytes()]
            if (file_format := _signable_format(data)) is not None
        ]
        marked = mark(image, recipe, job.work.output_format, signer=self._signer, ingredients=ingredients)
        self._register.add(job.id, marked.fingerprint, marked.identifier)
        return marked.data

    def _settle(self, job_id: str, number: int, values: dict[str, Any]) -> None:
        result = values["result"]
        outcome = Outcome(values["state"], None if result is None else Result(**result), values["reason"])
        if self._store.settle(job_id, number, outcome):
            if outcome.state == "ready":  # else it may be asked for again
                self._files.remove_inputs(job_id)
            _log.info("ended", extra={"job": job_id, "state": outcome.state, "reason": outcome.reason})

    def _call_webhook(self, job_id: str) -> bool:
        """Whether there is nothing more to be done."""
        job = self._store.job(job_id)
        if job is None or job.webhook_url is None:
            return True
        try:
            deliver(job.webhook_url, job.webhook_secret, task(job, self._files), self._settings.internal_urls)
        except (OSError, Refused) as error:
            _log.warning("webhook failed", extra={"job": job_id, "reason": str(error)})
            return False
        return True

    # Taking jobs from the queue

    def _claim(self) -> None:
        """A thread: keeps a little more at hand than is being made."""
        while not self._draining.is_set():
            with self._held_changed:
                self._held_changed.wait_for(
                    lambda: len(self._held) < AHEAD or self._draining.is_set(), timeout=REPORT_SECONDS
                )
                if len(self._held) >= AHEAD:
                    continue
            try:
                jobs = self._store.claim(self._name, self._specs, self._resident, self._settings.batch)
                for job in jobs:
                    self._together[job.id] = frozenset(other.id for other in jobs)
                for job in jobs:
                    self._start(job)
            except Exception as error:  # the database may be away for a while
                _log.warning("the queue cannot be read", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
                time.sleep(1)
                continue
            if not jobs:
                time.sleep(IDLE_SECONDS)

    def _next_group(self, first: Wanted) -> list[Wanted]:
        """With the jobs that were claimed together with it."""
        group = [first]
        expected = self._together.pop(first.job.id, frozenset((first.job.id,)))
        until = time.monotonic() + 5
        while len(group) < len(expected) and time.monotonic() < until:
            try:
                other = self._inbox.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                continue
            if other.job.id not in expected:
                self._inbox.put(other)
                break
            self._together.pop(other.job.id, None)
            group.append(other)
        return group

    # Making pictures, in the main thread

    def _make(self, group: list[Wanted]) -> None:
        if self._draining.is_set():
            for wanted in group:
                wanted.made.set_exception(Cancelled("The server is about to end."))
            return
        self._current = {wanted.job.id: wanted for wanted in group}
        began = time.monotonic()
        try:
            pictures = self._generate(group)
            seconds = (time.monotonic() - began) / len(group)
            self._counts["generate"] += seconds * len(group)
            self._counts["pictures"] += len(group)
            for wanted, (image, recipe) in zip(group, pictures, strict=True):
                if wanted.stop.is_set():
                    wanted.made.set_exception(Cancelled("Cancelled while others of its batch were made."))
                else:
                    wanted.made.set_result((image, recipe, seconds))
        except Exception as error:
            for wanted in group:
                if not wanted.made.done():
                    wanted.made.set_exception(error)
        finally:
            self._current = {}

    def _generate(self, group: list[Wanted]) -> Sequence[tuple[Image.Image, Recipe]]:
        job = group[0].job
        work = job.work
        pipeline = self._pipelines.get(job.spec)
        if pipeline is None:
            settings = self._settings
            pipeline = load(job.spec, precision=settings.precision, device=settings.device, memory=settings.memory)
            self._pipelines[job.spec] = pipeline
        self._resident = job.spec
        looks = _Looks()

        def on_step(step: Step) -> bool:
            self._active = time.monotonic()
            for place, wanted in enumerate(group):
                wanted.step = step.index + 1
                if step.index + 1 < step.steps:
                    wanted.look = looks.take(partial(step.sketch, place)) or wanted.look
            return not all(wanted.stop.is_set() for wanted in group)

        path = self._files.input_path
        editing: dict[str, Any] = {"strength": work.strength, "outpaint": work.outpaint}
        if work.image is not None:
            editing |= {"image": path(work.image), "mask": None if work.mask is None else path(work.mask)}
        else:
            editing |= {"size": (work.width, work.height)}
        pictures = pipeline.generate(
            [wanted.job.work.prompt for wanted in group],
            seed=[wanted.job.work.seed for wanted in group],
            references=[path(name) for name in work.references],
            steps=work.steps,
            guidance=work.guidance,
            on_step=on_step,
            **editing,
        )
        return [(picture.image, picture.recipe) for picture in pictures]

    # Saying how it is

    def _report(self) -> None:
        """A thread: steps and previews to the store, cancellations back, and a sign of life."""
        beaten = 0.0
        while not self._stopped.wait(REPORT_SECONDS):
            if time.monotonic() - self._active > self._settings.stuck_seconds:
                _log.error("stuck", extra={"seconds": self._settings.stuck_seconds})
                os._exit(70)
            try:
                current = dict(self._current)
                for job_id, wanted in current.items():
                    step, look = wanted.step, wanted.look
                    if step > wanted.reported and step < wanted.job.steps:
                        self._store.report(job_id, wanted.job.attempt, step, None if look is None else _jpeg(look))
                        wanted.reported = step
                attempts = {job_id: wanted.job.attempt for job_id, wanted in current.items()}
                for job_id in self._store.stopped(attempts) if attempts else ():
                    current[job_id].stop.set()
                if time.monotonic() - beaten > BEAT_SECONDS:
                    self._store.beat(self._name, self._specs, self._status())
                    beaten = time.monotonic()
            except Exception as error:
                _log.warning("the database cannot be reached", extra={"reason": f"{type(error).__name__}"})
            self._beat()

    def _status(self) -> dict[str, Any]:
        held = sum(pipeline.held_bytes for pipeline in list(self._pipelines.values()))
        return {
            **self._counts,
            "resident": self._resident,
            "held_bytes": held,
            "resident_bytes": resident_bytes(),
            "peak_bytes": peak_bytes(),
        }

    def _keep_house(self) -> None:
        """A thread: calls the webhooks of jobs that have ended, and lets DBOS forget what is done."""
        while not self._stopped.wait(REPORT_SECONDS):
            try:
                for job in self._store.untold(TELL_AGAIN_SECONDS):
                    with SetWorkflowID(f"tell:{job.id}:{time.time()}"):
                        DBOS.start_workflow(self._tell, job.id)
                self._forget_workflows()
            except Exception as error:
                _log.warning("housekeeping failed", extra={"reason": f"{type(error).__name__}"})
                time.sleep(1)

    def _forget_workflows(self) -> None:
        now = time.monotonic()
        if now - self._forgot < WORKFLOW_SECONDS:
            return
        self._forgot = now
        ended = DBOS.list_workflows(status=["SUCCESS", "ERROR", "CANCELLED"], load_input=False, load_output=False)
        DBOS.delete_workflows([workflow.workflow_id for workflow in ended])


def _signable_format(data: bytes) -> str | None:
    """Of a picture that can be an ingredient of a signature."""
    with Image.open(io.BytesIO(data)) as image:
        return image.format if image.format in MEDIA_TYPES else None


class _Looks:
    """Previews, as many as cost little: never more than their share of the time."""

    def __init__(self) -> None:
        self._next = 0.0

    def take(self, look: Callable[[], Image.Image]) -> Image.Image | None:
        began = time.monotonic()
        if began < self._next:
            return None
        image = look()
        ended = time.monotonic()
        self._next = ended + (ended - began) / PREVIEW_SHARE
        return image


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def main(lifeline: BinaryIO, beats: int, name: str) -> None:
    """What the supervisor starts. The lifeline brings the settings as one line of JSON; its end ends the worker.

    A further line "drain" has it finish first. beats: a file descriptor for signs of life.
    """
    logs.set_up()
    warnings.simplefilter("ignore")
    settings = Settings.from_json(lifeline.readline().decode())
    worker = Worker(settings, name, lambda: _write_beat(beats))

    def listen() -> None:
        if lifeline.readline().strip() == b"drain":
            worker.drain()
            lifeline.read()
        os._exit(0)  # whoever started this is gone, and another may begin with these jobs at once

    threading.Thread(target=listen, daemon=True).start()
    worker.run()
    os._exit(0)  # the listening thread holds standard input, for which an ordinary end would wait in vain


def _write_beat(beats: int) -> None:
    try:
        os.write(beats, b".")
    except BlockingIOError:
        pass
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(sys.stdin.buffer, arguments["beats"], arguments["name"])
