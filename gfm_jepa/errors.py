"""The one error that means: the input is at fault, and here is what to do about it."""


class InputError(ValueError):
    """Bad input from the user.

    The message is one sentence: what came, what was expected, what to do. The command line prints
    it without a traceback and exits with status 2.
    """
