"""The command `headrace`: one file a command, no logic, and no heavy import before the arguments are checked."""
