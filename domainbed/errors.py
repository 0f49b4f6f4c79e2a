"""The one exception that means "the input was wrong", as opposed to "the program is wrong"."""


class UserError(Exception):
    """Bad input: one line that names the value, the place and the remedy.

    The command line prints it without a traceback and exits with status 2. Anything else that
    is raised is a programming error and keeps its traceback.
    """
