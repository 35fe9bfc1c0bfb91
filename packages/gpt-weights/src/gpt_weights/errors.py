"""The package's one exception."""


class WeightsError(ValueError):
    """A file of weights cannot be used: damaged, of another format or of another model; the message names it."""
