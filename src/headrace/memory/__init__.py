"""Where every byte is, and when: what a run needs before it starts, and networks that are larger than memory."""
