"""What glibc is told about freed memory."""

from elkeid.allocator import keep_freed_memory


def test_freed_memory_is_kept_or_nothing_happens() -> None:
    """The C library takes the setting, or there is none and nothing is raised."""
    assert keep_freed_memory() in {True, False}
