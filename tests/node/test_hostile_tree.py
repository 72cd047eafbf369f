"""What strangers, and people by mistake, may put into the tree or take out of it: no node falls, and it heals."""

from __future__ import annotations

import pytest

from tests.node.conftest import Site

NO_NUMBERS: dict[str, bytes] = {
    "an integer longer than Python converts, beside a repeated name": b'[{"a":1},{"a":2},%b]' % (b"1" * 5_000),
    "an integer out of range beside a reference": b'["\\"blob\\"",{"blob":1},%b]' % (b"1" * 5_000),
    "a float out of range beside a reference": b'["x",1e999,{"blob":1}]',
}


@pytest.mark.parametrize("args", NO_NUMBERS.values(), ids=NO_NUMBERS)
async def test_numbers_that_no_machine_has_bring_no_node_down(site: Site, args: bytes) -> None:
    daemon = await site.node()
    task_id = await site.user.drop(b'{"kernel":"echo","args":%b}' % args)
    assert (await site.user.result(task_id)).status == "rejected"
    assert (await site.user.do("echo", 1)).status == "done"
    assert daemon.phase.value == "serving"


async def test_a_candidate_of_an_odd_name_brings_no_node_down(site: Site) -> None:
    """Its ten last letters are digits to Python, and no number."""
    await site.node("a")
    await site.user.session.create(f"{site.user.paths.candidates}/x-{'²' * 10}")
    await site.node("b")
    assert (await site.user.do("echo", 1, node="b")).status == "done"
