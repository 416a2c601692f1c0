"""The three networks of FLUX.2: tensors in, tensors out. No files, no devices, no precision, no streaming."""
