"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input. The message names the file, field, tensor or flag, and says what to do; the command line prints it in one line and exits 2."""
