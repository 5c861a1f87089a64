"""Words of messages: numbers with their nouns, and texts from files that may hold anything."""


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "2,000 images".

    Args:
        number: how many.
        noun: for one.
        plural: for other numbers; "" adds an s to `noun`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def printable(text: str, most: int = 200) -> str:
    """A text from a file, fit for one line of a terminal or a log.

    Args:
        text: any text; control characters, line ends and lone surrogates are written as escapes.
        most: number of characters kept; three dots stand for the others.
    """
    cut = text[:most] if len(text) > most else text
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut
    )
    return shown + (" ..." if len(text) > most else "")
