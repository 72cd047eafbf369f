"""Apache's own command line works on the embedded server and says what it says on a real one."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from zkd.zk.apache import JVM_FLAGS
from zkd.zk.jvm import class_path, java

if TYPE_CHECKING:
    from zkd.zk.apache import ApacheServer

COMMANDS = """
create ~ data
create ~ again
create -e ~/e ephemeral
create -s ~/s- sequential
create -s -e ~/se- both
create -c ~/c container
create -t 60000 ~/t ttl
create ~/none/x orphan
create ~/e/x child-of-ephemeral
create ~/bad/../x path
get ~
get -s ~
get ~/none
stat ~
stat ~/e
set ~ new
set -v 7 ~ stale
set -s -v 1 ~ newer
ls ~
ls -s ~
ls -R ~
addWatch ~
create ~/w 1
set ~/w 2
create ~/w/deep 3
deleteall ~/w
addWatch -m PERSISTENT ~
create ~/p 1
set ~ again
removewatches ~
removewatches ~
get -w ~
set ~ seen
ls -w ~
delete ~/p
stat -w ~/later
create ~/later x
listquota ~
setquota -n 100 ~
create ~/counted 12345
listquota ~
delquota ~
listquota ~
getAllChildrenNumber ~
getEphemerals ~
getEphemerals ~/e
whoami
sync ~
getAcl ~
addauth digest bob:pw
whoami
create ~/secret x auth::cdrwa
getAcl ~/secret
setAcl ~/c ip:127.0.0.1:cdrwa
getAcl -s ~/c
setAcl -v 7 ~/c world:anyone:r
setAcl ~/c nope:x:r
create -s ~/last- x
delete -v 3 ~/t
delete -v 0 ~/t
delete ~
deleteall ~
ls ~
close
quit
"""


def run_cli(port: int, root: str) -> str:
    flags = [*JVM_FLAGS, "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp", class_path()]
    done = subprocess.run(
        [java(), *flags, "org.apache.zookeeper.ZooKeeperMain", "-server", f"127.0.0.1:{port}"],
        input=COMMANDS.replace("~", root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def comparable(output: str, port: int, root: str) -> tuple[list[str], list[str]]:
    """What was printed, and the events apart: they come on another thread, anywhere between the lines.

    Both sorted: the order of some follows Java's hash sets. The last event may or may not be printed at the end.
    """
    output = output.replace(root, "~").replace(str(port), "PORT")
    output = re.sub(r"time = .*", "time = T", output)
    zxids = sorted({int(found, 16) for found in re.findall(r"[cmp]Zxid = 0x(\w+)", output)})
    output = re.sub(r"(Zxid = )0x(\w+)", lambda m: f"{m[1]}{zxids.index(int(m[2], 16))}", output)
    output = re.sub(r"(ephemeralOwner = 0x)[1-9a-f]\w+", r"\1S", output)
    events = sorted(event for event in re.findall(r"WatchedEvent .*", output) if "state:Closed" not in event)
    lines = [line for line in output.splitlines() if line and not re.match(r"WATCHER::|WatchedEvent", line)]
    lines = [",".join(sorted(re.split(r", ?", line.strip("[]")))) if line.startswith("[") else line for line in lines]
    return sorted(lines), events


def test_zkcli_prints_the_same(apache: ApacheServer, embedded_in_thread: str, zk_root: str) -> None:
    ports = [apache.port, int(embedded_in_thread.rpartition(":")[2])]
    expected, got = (comparable(run_cli(port, zk_root), port, zk_root) for port in ports)
    assert got == expected
    lines, events = got
    assert "Created ~/se-0000000002" in lines
    assert lines.count("Node already exists: ~") == 1
    assert any("type:NodeDataChanged path:~/w" in event for event in events)
    assert any("type:PersistentWatchRemoved" in event for event in events)
