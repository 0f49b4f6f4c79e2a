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
        # What users gave may hold line ends, and sequences that terminals obey.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
        self.where = where
