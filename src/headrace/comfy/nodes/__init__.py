"""What every node does, by its class: functions of its inputs, some of which also get the session they run in."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.comfy.nodes import conditioning, image, latent, loaders, output, sampling, values
from headrace.comfy.session import Function

# Functions of a node's inputs by name alone, which give its outputs in order.
PLAIN: Mapping[str, Function] = {
    **loaders.PLAIN, **image.PLAIN, **conditioning.PLAIN, **latent.PLAIN, **sampling.PLAIN, **values.PLAIN,
}  # fmt: skip
# As `PLAIN`, but with the session as their first argument.
WITH_SESSION: Mapping[str, Function] = {
    **loaders.WITH_SESSION, **image.WITH_SESSION, **conditioning.WITH_SESSION, **latent.WITH_SESSION,
    **sampling.WITH_SESSION, **output.WITH_SESSION,
}  # fmt: skip
