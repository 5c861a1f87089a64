"""Exceptions whose message tells the user what to change.

Every message names the file, the line or the key, says what was wrong, and what to do about it.
"""


class DataError(ValueError):
    """Annotations, images, a hierarchy or an annotation store that cannot be used as they are."""


class ConfigError(ValueError):
    """A configuration, a command-line option or a checkpoint that does not fit the rest."""
