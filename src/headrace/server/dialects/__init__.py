"""One module for each API that clients speak; all of them are thin: they read an `Ask`, and write an answer."""
