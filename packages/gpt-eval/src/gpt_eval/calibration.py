"""Whether a classifier is right as often as it says: bins of predicted probability (Guo et al. 2017, section 2).

Shapes: N examples, M bins of equal width.
"""

import numpy as np
from numpy.typing import NDArray

N_BINS = 10


def calibration_bins(confidence: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the bin, 0 to M - 1, of each probability of a predicted class (N,): bin k is (k / M, (k + 1) / M]."""
    return np.digitize(confidence, np.arange(1, N_BINS) / N_BINS, right=True)


def calibration_gaps(confidence: NDArray[np.float64], is_right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N, M): each example's outcome less its predicted probability, in the column of its bin.

    The expected calibration error is the sum of the absolute values of the columns' means.
    """
    gaps = np.zeros((len(confidence), N_BINS))
    gaps[np.arange(len(confidence)), calibration_bins(confidence)] = is_right - confidence
    return gaps
