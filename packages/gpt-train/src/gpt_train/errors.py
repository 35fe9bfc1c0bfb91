"""The one exception of this package."""


class DataError(ValueError):
    """Data, a shard, a log or a training state that cannot be used as it is.

    The message is one sentence that names the file or value, the rule and the way out.
    """
