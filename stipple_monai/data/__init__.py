"""Where scans, labels and datalists come from."""

from stipple_monai.data.body import BTCV_TISSUES, Tissue
from stipple_monai.data.checks import check_pair, check_scan, read_volume
from stipple_monai.data.datalist import (
    read_datalist,
    read_sections,
    split_datalist,
    write_datalist,
)
from stipple_monai.data.phantom import simulate_abdomen, write_phantom
from stipple_monai.data.repeated import RepeatedDataset
from stipple_monai.data.simulation import simulate_ct, write_simulated

__all__ = [
    "BTCV_TISSUES",
    "RepeatedDataset",
    "Tissue",
    "check_pair",
    "check_scan",
    "read_datalist",
    "read_sections",
    "read_volume",
    "simulate_abdomen",
    "simulate_ct",
    "split_datalist",
    "write_datalist",
    "write_phantom",
    "write_simulated",
]
