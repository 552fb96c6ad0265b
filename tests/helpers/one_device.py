"""Code for a GPU, tried without one: its tensors are on the device meta, which has no values."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Fail where tensors of two devices meet, which meta itself lets pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
        devices = {t.device.type for t in tensors}
        assert len(devices) < 2 or func in COPIES, f"{func} of {devices}"
        return func(*args, **(kwargs or {}))
