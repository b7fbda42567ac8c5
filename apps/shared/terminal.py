"""Text from outside on a terminal."""


def plain(text: str) -> str:
    """The text without what would steer a terminal: names of files may hold any character."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
