"""Text of strangers."""


def printable(text: str) -> str:
    r"""
    Return text of strangers for the terminal: characters that control it are escaped, all but line breaks.

    >>> printable("weight\x1b[2J")
    'weight\\x1b[2J'

    :param text: The text, such as an error with the name of a tensor.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shown(name: str) -> str:
    r"""
    Return a stranger's name, of a file or a tensor, as it can be shown in a line: quoted, escaped and cut.

    >>> shown("a\nb\x1b[2J.png")
    "'a\\nb\\x1b[2J.png'"

    :param name: The name.
    """
    return repr(name if len(name) <= 80 else name[:77] + "...")
