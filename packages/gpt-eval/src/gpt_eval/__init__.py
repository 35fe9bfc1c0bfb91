"""Judge a model honestly: each number with its count and its interval."""
