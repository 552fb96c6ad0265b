"""What the paper reports on TCIA Pancreas-CT, 5 folds: Dice in %, by label proportion.

Other data than anyone's study here; it stands beside ours for orientation and is never mixed with
it. Source: Petit, Thome, Soler, IJCARS 17 (2022), doi 10.1007/s11548-021-02494-y, tables 1 to 4
and section 4.2.
"""

PROPORTIONS = (1.0, 0.7, 0.5, 0.3, 0.1)


def _row(means: str, sds: str) -> dict[float, tuple[float, float]]:
    pairs = zip(means.split(), sds.split(), strict=True)
    known = zip(PROPORTIONS, pairs, strict=True)
    return {p: (float(mean), float(sd)) for p, (mean, sd) in known if mean != "-"}


DICE = {
    "baseline": _row("76.13 72.12 70.43 64.48 44.57", "0.94 2.01 3.38 2.13 5.24"),
    "stipple_single": _row("77.53 75.02 71.74 65.99 47.41", "1.44 2.21 2.02 1.71 8.40"),
    "relabelling": _row("- 75.12 73.71 69.00 51.91", "- 1.91 2.59 2.04 7.77"),
    "stipple": _row("77.53 76.10 74.08 70.37 54.45", "1.44 1.23 1.39 1.88 6.37"),
    "adversarial": _row("- 75.41 73.91 67.60 52.09", "- 1.78 2.27 1.84 6.00"),
    "mean_teacher": _row("- 74.53 72.68 66.99 46.04", "- 2.10 3.05 1.38 3.70"),
    "attention_unet": _row("76.38 74.18 71.37 64.25 41.28", "1.27 1.57 1.73 2.49 6.47"),
    "stipple_naive_position": _row("74.48 72.84 69.90 61.82 41.80", "2.53 3.15 1.85 3.49 9.94"),
}
"""Tables 2, 3 and 4: mean and standard deviation between folds."""

T_TEST = {1.0: 4.51e-2, 0.7: 3.00e-6, 0.5: 5.53e-4, 0.3: 6.40e-8, 0.1: 2.60e-9}
"""Table 1: p of the paired t-test between baseline and STIPPLE."""

PATCH_3D = {"patch_3d": {0.5: 71.0}, "patch_3d_prior": {0.5: 72.0, 0.1: 58.0}}
"""Section 4.2, one fold: the patch-based 3D U-Net; at 10 % only the figure with prior is given."""
