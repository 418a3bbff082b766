"""Errors that are the input's fault: one line that states the value, what was expected and how to fix it."""


class InputError(ValueError):
    """Something the user gave (a file, a name, a network, a value) cannot be used."""


class ConversionError(InputError):
    """A network cannot be turned into a quantised one."""


class NotFiniteError(InputError):
    """NaN or infinity where a network computes: broken images or weights, or a training that diverged."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
