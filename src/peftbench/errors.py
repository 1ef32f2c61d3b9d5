"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where it is, what to do.

    Scripts and the command line print it as ``error: ...`` and exit with status 1, without a traceback.
    """
