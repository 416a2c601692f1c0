"""From what a dialect was asked to a job in the queue, and from there to its end: the one way in for all dialects."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import RequestError
from headrace.recipe import MAX_AREA, SIZE_STEP, check_guidance, check_prompt, check_seed, check_steps, draw_seed
from headrace.server.fetch import check_url, picture_bytes
from headrace.server.files import Files, check_picture
from headrace.server.moderation import Policy
from headrace.server.prices import MEGAPIXEL, cost
from headrace.server.refusals import Refused
from headrace.server.store import Job, Key, ModelFacts, State, Store
from headrace.server.work import Work

WATCH_SECONDS = 0.05
MIN_SIDE = 64


@dataclass(frozen=True)
class Ask:
    """What a dialect was asked for. Pictures: bytes, or text as `fetch.picture_bytes` reads it.

    model: as the client calls it. width, height: 0 or None for "choose for me". aspect: (4, 3), where no size is given.
    strict: whether a model that the server does not have is refused; else the first one answers for it.
    """

    model: str
    prompt: str
    references: Sequence[bytes | str] = ()
    width: int | None = None
    height: int | None = None
    aspect: tuple[int, int] | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    output_format: str = "JPEG"
    safety_tolerance: int = 2
    webhook_url: str | None = None
    webhook_secret: str | None = None
    image: bytes | str | None = None
    mask: bytes | str | None = None
    outpaint: tuple[int, int, int, int] | None = None
    strength: float | None = None
    strict: bool = True


class Jobs:
    """Submits jobs, and watches them."""

    def __init__(self, store: Store, files: Files, policies: Sequence[Policy], internal_urls: bool) -> None:
        self.store = store
        self.files = files
        self._policies = policies
        self._internal_urls = internal_urls
        self._watched: dict[str, set[asyncio.Event]] = {}
        self._seen: dict[str, tuple[State, int]] = {}
        self._watcher: asyncio.Task[None] | None = None

    def model(self, name: str, strict: bool = True) -> ModelFacts:
        """A model by the name clients call it. Raises Refused: 404 where there is none, 503 where none is known yet."""
        models = self.store.models()
        if not models:
            raise Refused(503, "No worker has said yet which models it has; try again soon.", retry_after=5)
        found = next((model for model in models if model.name == name), None)
        if found is None and strict:
            raise Refused(404, f"This server has no model {name[:100]}; it has {', '.join(m.name for m in models)}.")
        return found or models[0]

    def submit(self, key: Key, ask: Ask) -> Job:
        """Checks and completes a request, and puts it into the queue. Raises Refused."""
        model = self.model(ask.model, ask.strict)
        if not key.may_use(model.name):
            raise Refused(403, f"This key may not use {model.name}.")
        if ask.webhook_url is not None:
            check_url(ask.webhook_url, "webhook_url", self._internal_urls)
        if len(ask.references) > model.reference_limit:
            raise Refused(
                422, f"{len(ask.references)} input images were given; {model.name} takes {model.reference_limit}."
            )
        try:
            prompt = check_prompt(ask.prompt)
            seed = draw_seed() if ask.seed is None else check_seed(ask.seed)
            steps = model.steps if ask.steps is None else check_steps(ask.steps)
            guidance = None if ask.guidance is None else check_guidance(ask.guidance)
        except RequestError as error:
            raise Refused(422, str(error)) from error

        job_id = str(uuid.uuid4())
        names = [f"input_image_{index}" if index > 1 else "input_image" for index in range(1, len(ask.references) + 1)]
        given = [*zip(names, ask.references, strict=True), ("image", ask.image), ("mask", ask.mask)]
        pictures = {name: self._bytes(value, name) for name, value in given if value is not None}
        sizes = {name: check_picture(data, name) for name, data in pictures.items()}
        if "mask" in sizes and sizes["mask"] != sizes["image"]:
            raise Refused(422, "The mask has another size than the image.")
        width, height = self._size(ask, model, [sizes[name] for name in names], sizes.get("image"))
        try:
            kept = {
                name: self.files.keep_input(job_id, index, data) for index, (name, data) in enumerate(pictures.items())
            }
            work = Work(
                prompt=prompt,
                seed=seed,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                references=tuple(kept[name] for name in names),
                output_format=ask.output_format,
                safety_tolerance=ask.safety_tolerance,
                image=kept.get("image"),
                mask=kept.get("mask"),
                outpaint=ask.outpaint,
                strength=ask.strength,
            )
            inputs = [size for name, size in sizes.items() if name != "mask"]
            price = cost(model.name, width, height, inputs)
            reasons = [r for policy in self._policies for r in policy.prompt(prompt, ask.safety_tolerance)]
            webhook = ask.webhook_url, ask.webhook_secret
            if reasons:
                self.files.remove_inputs(job_id)
                self.store.submit(job_id, key, model, work, price, webhook, "request_moderated", ", ".join(reasons))
            else:
                self.store.submit(job_id, key, model, work, price, webhook)
        except BaseException:
            self.files.remove_inputs(job_id)
            raise
        job = self.store.job(job_id)
        assert job is not None
        return job

    def _bytes(self, value: bytes | str, name: str) -> bytes:
        return value if isinstance(value, bytes) else picture_bytes(value, name, self._internal_urls)

    @staticmethod
    def _size(
        ask: Ask, model: ModelFacts, references: Sequence[tuple[int, int]], image: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Width and height of the picture that will come out, in multiples of 16.

        An edit keeps its source's size. Else what was asked for, rounded; else that ratio, the first reference's or the
        model's own, on as many pixels as the model makes by itself, at most four megapixels.
        """
        if image is not None:
            left, top, right, bottom = ask.outpaint or (0, 0, 0, 0)
            size = image[0] + left + right, image[1] + top + bottom
            if size[0] * size[1] > MAX_AREA:
                raise Refused(422, f"The picture would have {size[0]}x{size[1]} pixels; at most 4 megapixels are made.")
            return size
        width, height = ask.width or 0, ask.height or 0
        for side, name in ((width, "width"), (height, "height")):
            if side and side < MIN_SIDE:
                raise Refused(422, f"The {name} is {side}; {MIN_SIDE} pixels are the least.")
        own_width, own_height = model.default_size
        if not (width and height):
            across, down = ask.aspect or (references[0] if references else model.default_size)
            if width or height:
                width, height = width or round(height * across / down), height or round(width * down / across)
            elif references and ask.aspect is None:
                shrink = min(1.0, math.sqrt(MEGAPIXEL / (across * down)))
                width, height = int(across * shrink), int(down * shrink)
            else:
                across_pixels = math.sqrt(own_width * own_height * across / down)
                width, height = round(across_pixels), round(across_pixels * down / across)
        rounded = max(MIN_SIDE, _multiple(width)), max(MIN_SIDE, _multiple(height))
        if rounded[0] * rounded[1] > MAX_AREA:
            raise Refused(422, f"{width}x{height} are more than 4 megapixels (2048x2048), the most that is made.")
        return rounded

    def own(self, key: Key, job_id: str) -> Job:
        """A job of this key. Raises Refused (404) for all others, as for those that never were."""
        job = self.store.job(job_id)
        if job is None or job.key_id != key.id:
            raise Refused(404, "There is no such task.")
        return job

    def remove(self, job_id: str) -> bool:
        """Forgets an ended job and its pictures; whether there was one."""
        forgotten = self.store.forget(job_id)
        if forgotten is not None:
            self.files.remove(job_id)
        return forgotten is not None

    async def watch(self, job_id: str) -> AsyncIterator[tuple[State, int]]:
        """State and steps of a job whenever they change, from now to its end. One question serves all who watch."""
        event = asyncio.Event()
        self._watched.setdefault(job_id, set()).add(event)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._look())
        last: Any = None
        try:
            while True:
                await event.wait()
                event.clear()
                seen = self._seen.get(job_id)
                if seen is None:  # forgotten meanwhile
                    return
                if seen != last:
                    last = seen
                    yield seen
                if seen[0] not in ("queued", "running"):
                    return
        finally:
            self._watched[job_id].discard(event)
            if not self._watched[job_id]:
                del self._watched[job_id]
                self._seen.pop(job_id, None)

    async def finished(self, job_id: str, seconds: float | None = None) -> Job | None:
        """The job once it has ended, or as it stands after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                async for _ in self.watch(job_id):
                    pass
        except TimeoutError:
            pass
        return await asyncio.to_thread(self.store.job, job_id)

    async def _look(self) -> None:
        while self._watched:
            wanted = list(self._watched)
            try:
                found = await asyncio.to_thread(self.store.progress, wanted)
            except Exception:  # the database is away; whoever watches goes on waiting
                await asyncio.sleep(1)
                continue
            for job_id in wanted:
                state = found.get(job_id)
                before = self._seen.get(job_id)
                if state is not None:
                    self._seen[job_id] = state
                if state != before or state is None:
                    for event in self._watched.get(job_id, ()):
                        event.set()
            await asyncio.sleep(WATCH_SECONDS)


def _multiple(side: int) -> int:
    return max(1, round(side / SIZE_STEP)) * SIZE_STEP
