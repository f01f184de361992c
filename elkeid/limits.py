"""What a limit is; each role lists its own, and ``elkeid limits`` prints them all."""

from attrs import frozen


@frozen
class Limit:
    """A bound on what a peer may cost.

    Attributes:
        name: of the setting, or of the constant by module.
        value: in ``unit``.
        unit: such as ``bytes``.
        reason: why this much.
        answer: what the peer gets that goes beyond.
        metric: where that shows; empty where nothing is refused.
        test: ``file::function`` below ``tests``.
    """

    name: str
    value: float
    unit: str
    reason: str
    answer: str
    metric: str
    test: str
