"""What memory this process has taken."""

from stipple_monai import memory


def test_the_peak_is_that_of_this_process():
    before = memory.process_peak_mib()
    held = bytearray(64 * 2**20)
    assert memory.process_peak_mib() >= before > 10
    assert memory.process_peak_mib() >= len(held) / 2**20


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "_has_resource", False)
    assert memory.process_peak_mib() == 0
