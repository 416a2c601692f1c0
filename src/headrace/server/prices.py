"""What a picture costs: Black Forest Labs' published formula, in credits of one US cent.

cost = first + (output megapixels - 1) * additional + input megapixels * additional, where a megapixel is 2**20 pixels,
every picture is rounded up to whole ones, and a reference counts at the size the model sees, at most one megapixel
(docs.bfl.ai, pricing; the rounding is that of ComfyUI's price badges). Amounts are whole thousandths of a credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MEGAPIXEL = 2**20
THOUSANDTHS = 1000


@dataclass(frozen=True)
class Price:
    """In thousandths of a credit: the first megapixel, and every further one that comes in or goes out."""

    first: int
    additional: int


PRICES = {
    "flux-2-klein-4b": Price(1400, 100),
    "flux-2-klein-9b": Price(1500, 200),
    "flux-2-klein-9b-preview": Price(1500, 200),
    "flux-2-pro": Price(3000, 1500),
    "flux-2-pro-preview": Price(3000, 1500),
    "flux-2-flex": Price(5000, 5000),
    "flux-2-max": Price(7000, 3000),
    "flux-dev": Price(2500, 0),
    "flux-pro": Price(5000, 0),
    "flux-pro-1.1": Price(4000, 0),
    "flux-pro-1.1-ultra": Price(6000, 0),
    "flux-kontext-pro": Price(4000, 0),
    "flux-kontext-max": Price(8000, 0),
}
# Of models that have no published price.
DEFAULT_PRICE = PRICES["flux-2-klein-4b"]


@dataclass(frozen=True)
class Cost:
    """thousandths: of a credit. input_mp, output_mp: 10**6 pixels, to two decimals, as the API reports them."""

    thousandths: int
    input_mp: float
    output_mp: float

    @property
    def credits(self) -> float:
        return self.thousandths / THOUSANDTHS


def cost(model: str, width: int, height: int, inputs: Sequence[tuple[int, int]] = ()) -> Cost:
    """Of one picture of width x height pixels from inputs of these sizes."""
    price = PRICES.get(model, DEFAULT_PRICE)
    seen = [min(w * h, MEGAPIXEL) for w, h in inputs]
    further = max(1, -(-width * height // MEGAPIXEL)) - 1 + sum(-(-pixels // MEGAPIXEL) for pixels in seen)
    return Cost(price.first + further * price.additional, round(sum(seen) / 10**6, 2), round(width * height / 10**6, 2))
