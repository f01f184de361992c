"""Pages of lists, as the two generations of the API show them.

Source: docs/protocol.md, "Manager API".
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from elkeid.web.answers import Enveloped

PAGE_LIMIT = 1 << 53
"""A page number; beyond, it is no number for many clients."""

PAGE_SIZE_LIMIT = 5_000
"""Items of one page."""


class PageQuery(msgspec.Struct):
    """Which page of a list; each list says whether it follows ``order_key``."""

    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] = 1
    page_size: Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_LIMIT)] = 100
    order_key: str = ""
    order_value: int = 0

    @property
    def offset(self) -> int:
        """How many items lie before this page."""
        return (self.page - 1) * self.page_size


class ModelPage(msgspec.Struct):
    """One page of a list of v1."""

    total: int  # that match
    count: int  # in this page
    pages: int
    page: int
    page_size: int
    has_prev: bool
    has_next: bool
    items: list[Any]


class PageInfo(msgspec.Struct):
    """Beside ``data`` of a list of v6."""

    total: int  # that match
    page: int
    page_size: int


class Paged(msgspec.Struct):
    """What stands beside ``data`` of a list of v6."""

    page_info: PageInfo


def model_page(asked: PageQuery, total: int, items: list[Any]) -> ModelPage:
    """``data`` of a list of v1.

    Args:
        asked: the page.
        total: how many match in all.
        items: those of this page.
    """
    pages = -(-total // asked.page_size)
    return ModelPage(
        total=total,
        count=len(items),
        pages=pages,
        page=asked.page,
        page_size=asked.page_size,
        has_prev=asked.page > 1,
        has_next=asked.page < pages,
        items=items,
    )


def listed(asked: PageQuery, total: int, items: Sequence[Any] | msgspec.Raw) -> Enveloped:
    """The answer of a list of v6: items in ``data``, ``page_info`` beside it.

    Args:
        asked: the page.
        total: how many match in all.
        items: those of this page; or the JSON list of them.
    """
    info = PageInfo(total=total, page=asked.page, page_size=asked.page_size)
    return Enveloped(items, {"page_info": info})
