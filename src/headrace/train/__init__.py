"""Learning a FLUX.2 model from scenes that ``headrace.world`` draws."""
