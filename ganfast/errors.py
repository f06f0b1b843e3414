"""The two ways a command can fail. The command line prints either as one sentence."""


class InputError(ValueError):
    """What the user gave cannot be used. Says what was given, what was expected and what to do; exit code 2."""


class RunError(RuntimeError):
    """Something failed while running that is not the user's input; exit code 1."""
