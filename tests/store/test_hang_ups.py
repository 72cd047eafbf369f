"""Who hangs up in the middle of a request is no error of the node's."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import make_mocked_request

from zkd.net.server import unheard


async def cut_off(request: web.Request) -> web.StreamResponse:
    raise ClientConnectionResetError("Cannot write to closing transport")


async def test_a_caller_that_has_gone_gets_an_answer_that_nobody_reads() -> None:
    gone = Mock(is_closing=lambda: True, get_extra_info=lambda *_: None)
    assert (await unheard(make_mocked_request("GET", "/", transport=gone), cut_off)).status == 499


async def test_a_connection_to_somebody_else_that_broke_is_still_told() -> None:
    here = Mock(is_closing=lambda: False, get_extra_info=lambda *_: None)
    with pytest.raises(ConnectionResetError):
        await unheard(make_mocked_request("GET", "/", transport=here), cut_off)
