"""Latents and time: noise, positions, the schedule, guidance, references and the steps from noise to picture."""
