"""ComfyUI: its workflows read, checked and run without it."""
