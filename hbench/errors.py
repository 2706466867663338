"""The one exception that means "the user can fix this"."""


class HBenchError(Exception):
    """Bad input or a bad environment; the message is one line that names what to do.

    The command line prints the message and exits with code 1. A caller's bug raises ``ValueError``
    instead and keeps its traceback.
    """
