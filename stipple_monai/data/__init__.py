"""Where scans, labels and datalists come from."""
