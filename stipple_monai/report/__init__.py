"""Pages about data sets, priors, trainings and predictions: `python -m stipple_monai report`."""
