"""Train, judge and serve a text classifier on your own machine."""
