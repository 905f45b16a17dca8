"""The word that was probably meant."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a mistyped one: case aside, by its letters, or as the only one that holds all of it."""
    by_lower = {name.lower(): name for name in reversed(list(known))}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return by_lower[close[0]]
    holding = [name for lower, name in by_lower.items() if len(word) >= 3 and word.lower() in lower]
    return holding[0] if len(holding) == 1 else None


def hint(word: str, known: Iterable[str]) -> str:
    """How to go on from a word that is not there: the one that was probably meant, or all there are."""
    names = list(known)
    close = closest(word, names)
    return f'did you mean "{close}"?' if close else f"there are: {', '.join(names) or 'none'}"
