"""Which files are this package's to replace: one rule for every command.

A command replaces only files that it can show it wrote, never an input, and the old only when the
new is whole. What it wrote stands in a *manifest*, a hidden file of names in the folder. A set of
files that is replaced is made in a *part*, a folder beside it with a *mark* that tells what it is
made of, so that nobody's work is taken for another's. A folder that grows keeps its *settings*,
what it was begun with, which a later command must not contradict. The manifest also tells which
command wrote a file: what replaces its older files leaves those of others.
"""

from stipple_monai.ownership.manifest import (
    MANIFEST,
    adopt,
    claim,
    owned,
    refuse_file_above,
    refuse_foreign,
    refuse_inputs,
)
from stipple_monai.ownership.parts import (
    MARK,
    begin_part,
    begin_set,
    end_part,
    made_anew,
    replace_set,
)
from stipple_monai.ownership.settings import (
    CONTENTS,
    begun_with,
    contradictions,
    keep_settings,
    refuse_contradictions,
    remember,
)

__all__ = [
    "CONTENTS",
    "MANIFEST",
    "MARK",
    "adopt",
    "begin_part",
    "begin_set",
    "begun_with",
    "claim",
    "contradictions",
    "end_part",
    "keep_settings",
    "made_anew",
    "owned",
    "refuse_contradictions",
    "refuse_file_above",
    "refuse_foreign",
    "refuse_inputs",
    "remember",
    "replace_set",
]
