"""Errors that are the input's fault: one line that states the value, what was expected and how to fix it."""


class InputError(ValueError):
    """Something the user gave (a file, a name, a network, a value) cannot be used."""


class ConversionError(InputError):
    """A network cannot be turned into a quantised one."""
