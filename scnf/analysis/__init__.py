"""Looking at trained models: pictures, distances, calibration, comparisons and reports."""
