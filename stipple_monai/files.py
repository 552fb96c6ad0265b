"""A file is whole or absent.

Whatever this package writes goes to a temporary file beside the target first and takes the
target's name in one step, so that an interrupted or failed write never leaves half a file and
never destroys the file that was there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends without an error.

    Args:
        path: the file to write. Missing folders are made. The temporary name ends like
            ``path`` (``.nii.gz``), because writers choose the format by it.

    Yields:
        The temporary path, in the same folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole_file(target) as path:
        ...     _ = path.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    temporary = target.with_name(f".part-{uuid.uuid4().hex}-{target.name}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
