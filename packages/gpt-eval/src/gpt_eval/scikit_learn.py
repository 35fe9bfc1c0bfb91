"""scikit-learn and the scipy that comes with it: only the extra ``classification`` brings them."""


def require_scikit_learn(purpose: str) -> None:
    """Raise ImportError that says how to install scikit-learn, unless it is there; ``purpose`` is what needs it."""
    try:
        import sklearn  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{purpose} needs scikit-learn: install 'gpt-eval[classification]'") from error
