"""Words of messages that depend on a number."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 picture", "2,000 pictures".

    Args:
        number: how many.
        noun: for one.
        plural: for other numbers; "" adds an s to `noun`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
