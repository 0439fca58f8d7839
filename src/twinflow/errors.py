"""Errors that speak to users."""


class TwinflowError(Exception):
    """Something the user can put right; the message names the value and the remedy.

    The command line prints the message alone and exits with status 2.
    """
