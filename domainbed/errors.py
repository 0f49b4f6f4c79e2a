"""The one exception that means "the input was wrong", as opposed to "the program is wrong"."""


class UserError(Exception):
    """Bad input: one line that names the value, the place and the remedy.

    The command line prints it without a traceback and exits with status 2. Anything else that
    is raised is a programming error and keeps its traceback.

    Attributes:
        where: the field that is wrong, and keys and positions inside its value, where the fault
            lies in one: ("hparams", "lr"). Whoever knows where the field was given can say so.
    """

    def __init__(self, message: str, *where: str | int) -> None:
        super().__init__(message)
        self.where = where
