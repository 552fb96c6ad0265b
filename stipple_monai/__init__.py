"""STIPPLE for MONAI: spatial priors for organ segmentation."""
