"""Four-letter words are answered as Apache does, so that monitoring and clients' probes understand them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.zk_server.raw_client import RawClient
from zkd.zk.apache import ApacheServer, ask
from zkd.zk.server import EmbeddedServer, serve_in_thread


def shape(answer: str) -> list[str]:
    """The lines without their figures: the text up to the first digit or separator."""
    return [re.split(r"[0-9=\t]|: ", line)[0] for line in answer.splitlines()]


@pytest.mark.parametrize("word", [b"ruok", b"isro", b"xxxx"])
def test_fixed_answers(apache: ApacheServer, embedded_in_thread: str, word: bytes) -> None:
    port = int(embedded_in_thread.rpartition(":")[2])
    assert ask(port, word) == ask(apache.port, word)


@pytest.mark.parametrize("word", [b"srvr", b"conf"])
def test_same_lines(apache: ApacheServer, embedded_in_thread: str, word: bytes) -> None:
    port = int(embedded_in_thread.rpartition(":")[2])
    assert shape(ask(port, word)) == shape(ask(apache.port, word))


def test_mntr_is_a_part_of_apaches(apache: ApacheServer, embedded_in_thread: str) -> None:
    port = int(embedded_in_thread.rpartition(":")[2])
    theirs, ours = set(shape(ask(apache.port, b"mntr"))), set(shape(ask(port, b"mntr")))
    assert ours <= theirs
    assert ours >= {"zk_version", "zk_server_state", "zk_znode_count", "zk_watch_count", "zk_ephemerals_count"}


def test_client_lists_name_their_sessions(embedded_in_thread: str) -> None:
    port = int(embedded_in_thread.rpartition(":")[2])
    client = RawClient(port)
    client.connect()
    for word in (b"stat", b"cons", b"dump"):
        assert f"{client.session_id:#x}" in ask(port, word)
    assert "connections watching" in ask(port, b"wchs")
    assert "zookeeper.version=3.8.0" in ask(port, b"envi")
    client.close()


def test_words_are_words_only_before_the_session(embedded_in_thread: str) -> None:
    client = RawClient(int(embedded_in_thread.rpartition(":")[2]))
    client.connect()
    client.send(b"ruok")  # now it is the length of a frame, and too large
    client.await_close()
    client.close()


def test_a_server_of_ones_own_process_says_where_it_is_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "zkd.zk.server", "--port", "0", "--tick-s", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r":(\d+),", said)
        assert found is not None, said
        assert "nothing is kept" in said
        assert ask(int(found[1]), b"ruok") == "imok"
        process.terminate()
        assert process.wait(5) == 0


def test_a_port_in_use_is_said_to_the_caller(embedded_in_thread: str) -> None:
    port = int(embedded_in_thread.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), serve_in_thread(EmbeddedServer(port=port)):
        pytest.fail("it served")
