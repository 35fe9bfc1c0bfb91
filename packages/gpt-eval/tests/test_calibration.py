import numpy as np

from gpt_eval.calibration import calibration_bins, calibration_gaps


def test_a_bin_holds_its_upper_end_and_not_its_lower_one():
    edges = [k / 10 for k in range(11)]

    assert calibration_bins(np.array(edges)).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert calibration_bins(np.nextafter(edges, 2)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_a_gap_stands_in_the_column_of_its_bin():
    gaps = calibration_gaps(np.array([0.75, 0.95, 0.75]), np.array([True, False, False]))

    assert gaps[:, 7].tolist() == [0.25, 0, -0.75]
    assert gaps[:, 9].tolist() == [0, -0.95, 0]
    assert np.count_nonzero(gaps) == 3
