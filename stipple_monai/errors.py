"""The errors that this package raises on purpose; those about input are ``ValueError``."""


class PriorError(ValueError):
    """A spatial prior cannot be estimated, loaded, placed or fused."""


class PositionError(ValueError):
    """A position, or what it is searched in, is not usable."""


class DatasetError(ValueError):
    """A scan, a label map or a datalist is not what it must be."""


class TrainingError(RuntimeError):
    """A training has diverged."""


class StudyError(RuntimeError):
    """Part of a study failed."""
