"""How a folder in diffusers' layout is to be sampled: there is one way that FLUX.2 is, and others are refused."""

from __future__ import annotations

from pathlib import Path

from headrace.checkpoints import configs
from headrace.errors import RequestError

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Switches of diffusers' FlowMatchEulerDiscreteScheduler and Flux2KleinPipeline that replace the schedule or the step.
# Its shift, base_shift, max_shift and sequence lengths have no effect: FLUX.2's pipelines compute the shift themselves.
OFF = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def check_scheduler(folder: Path, index: configs.Fields) -> None:
    """Raises RequestError where the folder asks for another schedule or solver than `headrace.flow` has.

    index: the folder's model_index.json, which names the scheduler's class. A folder may come without a scheduler.
    """
    index.must_be("scheduler", ["diffusers", SCHEDULER], [None, None])
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return
    fields = configs.read_fields(file)
    fields.must_be("_class_name", SCHEDULER)
    if "use_dynamic_shifting" not in fields.values:
        raise RequestError(
            f"{file} does not say use_dynamic_shifting, which diffusers takes for false; set it to true."
        )
    fields.must_be("use_dynamic_shifting", True)
    fields.must_be("time_shift_type", "exponential")
    fields.must_be("num_train_timesteps", 1000)
    for name in OFF:
        fields.must_be(name, False, None)
