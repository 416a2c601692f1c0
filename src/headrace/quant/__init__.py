"""Eight bits a weight: codecs, the linear layers that multiply with them, and which layers those are."""
