"""The commands: arguments, and errors in one line."""
