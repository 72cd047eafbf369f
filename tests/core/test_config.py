"""What central configuration comes to: layers, what a machine says itself, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zkd.configs import LAYER_BYTES_MAX, ConfigChange, ConfigRevision
from zkd.core.config import (
    Layer,
    Refusal,
    Snapshot,
    differences,
    edited,
    expect_layer,
    expect_valid,
    faults_of,
    judge,
    kept_text,
    layers_of,
    merge,
    own_of,
    read_kept,
    said_at,
    undone,
)
from zkd.core.setting_table import table
from zkd.errors import BadSettings
from zkd.paths import label_layer, layer_title
from zkd.settings import KEYS, Node, Settings, Tasks, load_with_origins

NONE = Snapshot()


def head(revision: int = 1, **more: Any) -> bytes:
    return json.dumps({"revision": revision, **more}).encode()


def layer(**values: Any) -> bytes:
    return json.dumps(
        {"revision": 1, "values": {key.replace("__", "."): each for key, each in values.items()}}
    ).encode()


def refused(head: bytes | None, *layers: tuple[str, bytes | None], held: Snapshot = NONE) -> Refusal:
    found = judge(held, head, layers, "1.0")
    assert isinstance(found, Refusal)
    return found


def test_the_node_beats_its_labels_and_they_beat_the_cluster() -> None:
    names = layers_of("n1", {"rack": "r1", "gpu": "yes"})
    assert names == ["cluster", "labels/gpu=yes", "labels/rack=r1", "nodes/n1"]
    layers = [Layer(name, {"tasks.timeout_s": number}) for number, name in enumerate(names, 1)]
    for count in range(1, 5):
        found = merge(Settings(), {}, layers[:count])
        assert found.settings.tasks.timeout_s == count
        assert found.origins["tasks.timeout_s"] == f"config/{names[count - 1]}"
    assert found.origins["tasks.result_ttl_s"] == "default"


def test_what_a_machine_says_of_itself_holds_there() -> None:
    local, origins = load_with_origins(None, {"ZKD_TASKS__TIMEOUT_S": "60"}, {"log.level": "debug"})
    own = own_of(local, origins)
    assert own == {"tasks.timeout_s": "$ZKD_TASKS__TIMEOUT_S", "log.level": "command line"}
    said = {"tasks.timeout_s": 5, "log.level": "error", "data.grace_s": 7}
    found = merge(local, own, [Layer("nodes/n1", said)])
    assert (found.settings.tasks.timeout_s, found.settings.log.level, found.settings.data.grace_s) == (60, "debug", 7)
    assert found.origins["tasks.timeout_s"] == "$ZKD_TASKS__TIMEOUT_S"


def test_of_settings_that_a_program_made_those_hold_that_are_not_the_default() -> None:
    made = Settings(tasks=Tasks(timeout_s=60), node=Node(name="a"))
    assert own_of(made, None) == {"tasks.timeout_s": "program"}


@pytest.mark.parametrize(
    "key",
    [key for key in KEYS if key.startswith(("zookeeper.", "node.tls"))]
    + ["node.name", "node.data_dir", "node.http", "node.labels", "node.zone", "workers.modules", "data.stores"]
    + ["workers.sandbox", "workers.writable", "node.dashboard"],
)
def test_identity_places_and_credentials_are_never_said_from_afar(key: str) -> None:
    assert "each machine's own" in faults_of({key: "x"})[0]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"tasks.tmeout_s": 1}, "tasks.tmeout_s: unknown setting; did you mean `tasks.timeout_s`?"),
        ({"tasks.timeout_s": -1}, "tasks.timeout_s: Expected `float` > 0.0 (is -1)"),
        ({"tasks.timeout_s": None}, "tasks.timeout_s: Expected `float`, got `null` (is None)"),
        ({"log.level": "loud"}, "log.level: expected one of debug, info, warning, error (is 'loud')"),
        ({"data.repair_bytes_s": "3 XB"}, 'data.repair_bytes_s: expected bytes, as a number or such as "2GiB"'),
        ({"tasks.queue_bytes_max": "9" * 400}, "tasks.queue_bytes_max: Expected `int` <= 4611686018427387904"),
        ({"tasks.queue_max": 10**30}, "tasks.queue_max: "),
        ({"training.coordinate": 1}, "training.coordinate: Expected `bool`, got `int`"),
        ({"node.slots": {"a": [1]}}, "node.slots: Expected `int`, got `object`"),
    ],
)
def test_a_bad_value_is_told_with_what_was_expected(values: dict[str, Any], fault: str) -> None:
    assert faults_of(values)[0].startswith(fault)


def test_a_revision_is_taken_whole_or_not_at_all() -> None:
    good, bad = ("cluster", layer(tasks__timeout_s=5)), ("nodes/n1", layer(tasks__timeout_s=0))
    assert judge(NONE, head(), [good, ("nodes/n1", None)], "1.0") == Snapshot(
        1, (Layer("cluster", {"tasks.timeout_s": 5}),)
    )
    assert refused(head(), good, bad).faults == [
        "config/nodes/n1: tasks.timeout_s: Expected `float` > 0.0 (is 0)",
    ]


def test_a_setting_of_a_newer_release_is_refused_and_says_which_release() -> None:
    found = refused(head(4, zkd="2.0"), ("cluster", layer(tasks__colour="red", tasks__timeout_s=5)))
    assert found == Refusal(
        4, ["config/cluster: tasks.colour: unknown setting", "it was written by zkd 2.0, this node runs 1.0"]
    )
    assert refused(b'{"revision":2,"form":2}').faults[0].startswith("config: $.form: unknown field")
    assert "unknown field" in refused(head(), ("cluster", b'{"revision":1,"values":{},"when":"noon"}')).faults[0]


@pytest.mark.parametrize(
    "text",
    [
        b"junk", b"\xff", b"[" * 100_000, b'{"revision":1,"values":[]}', b'{"revision":-1,"values":{}}', b"[]", b"null",
        b'{"revision":1,"values":{"tasks.timeout_s":1,"tasks.timeout_s":2}}', b" " * (LAYER_BYTES_MAX + 1),
        b'{"revision":1,"values":{"tasks.timeout_s":' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
        b'{"revision":1,"values":{"tasks.queue_max":1' + b"0" * 5_000 + b"}}",
        b'{"revision":1,"values":{"tasks.timeout_s":1e999}}',
    ],
)  # fmt: skip
def test_hostile_texts_are_refused_and_nothing_else_happens(text: bytes) -> None:
    assert refused(head(), ("cluster", text)).faults[0].startswith("config/cluster: ")
    assert refused(text, ("cluster", layer())).revision == 0


def test_many_faults_are_told_in_few_words() -> None:
    values = {f"tasks.unknown_{number}": "x" * 10_000 for number in range(1000)}
    found = refused(head(), ("cluster", json.dumps({"revision": 1, "values": values}).encode()[: LAYER_BYTES_MAX + 9]))
    assert len(json.dumps(found.faults)) < 500
    values = {f"log.u{number}": "x" * 400 for number in range(100)}
    found = refused(head(), ("cluster", json.dumps({"revision": 1, "values": values}).encode()))
    assert (len(found.faults), found.faults[-1]) == (11, "and 90 more")
    assert len(json.dumps(found.faults)) < 5_000


def test_configuration_that_was_removed_leaves_the_last_good_one() -> None:
    held = Snapshot(7, (Layer("cluster", {"tasks.timeout_s": 5}),))
    for nothing in (None, b""):
        assert refused(nothing, held=held).faults == [
            "config: expected revision 7 or a later one, got nothing: it was removed"
        ]
        assert judge(NONE, nothing, [], "1.0") == NONE


def test_what_is_kept_is_read_back_and_judged_again() -> None:
    held = Snapshot(7, (Layer("cluster", {"tasks.timeout_s": 5}),))
    assert read_kept("a:1/zkd", kept_text("a:1/zkd", held)) == held
    assert read_kept("b:1/zkd", kept_text("a:1/zkd", held)) is None
    with pytest.raises(BadSettings, match=r"tasks\.colour: unknown setting"):
        read_kept("a", kept_text("a", Snapshot(7, (Layer("cluster", {"tasks.colour": 5}),))))
    with pytest.raises(BadSettings):
        read_kept("a", b"junk")


def test_a_revision_can_be_undone() -> None:
    first = edited({}, "cluster", {"tasks.timeout_s": 5}, [])
    second = edited(first, "nodes/n1", {"log.level": "debug"}, [])
    third = edited(second, "cluster", {}, ["tasks.timeout_s"])
    assert third == {"nodes/n1": {"log.level": "debug"}}
    assert undone(third, ConfigRevision(3, [ConfigChange("cluster", {"tasks.timeout_s": 5}, None)])) == second
    assert undone(second, ConfigRevision(2, [ConfigChange("nodes/n1", None, {"log.level": "debug"})])) == first
    assert differences(first, third) == [
        ("cluster", "tasks.timeout_s", 5, None),
        ("nodes/n1", "log.level", None, "debug"),
    ]


def test_all_faults_of_a_change_are_told_at_once() -> None:
    with pytest.raises(BadSettings) as caught:
        expect_valid({"cluster": {"node.name": "a", "tasks.x": 1}, "nodes/n1": {"node.slots": 0}})
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(BadSettings, match="65536 bytes"):
        expect_valid({"cluster": {"log.level": "x" * 70_000}})


def test_what_was_said_is_told_as_far_as_the_history_goes() -> None:
    states: list[dict[str, dict[str, Any]]] = [{}]
    for number in range(1, 9):
        name = ("cluster", "nodes/a", "labels/x=y")[number % 3]
        states.append(edited(states[-1], name, {"tasks.timeout_s": number} if number < 7 else {}, ["tasks.timeout_s"]))
    entries = [
        ConfigRevision(
            number, [ConfigChange(name, states[number - 1].get(name), states[number].get(name)) for name in
            {*states[number], *states[number - 1]} if states[number - 1].get(name) != states[number].get(name)]
        )
        for number in range(1, 9)
    ]  # fmt: skip
    for number, state in enumerate(states):
        assert said_at(number, 8, states[8], entries) == state
        assert said_at(number, 8, states[8], entries[number:]) == state, "only what came after it is kept"
        if number:  # by hand, at once up to revision 20
            assert said_at(number, 20, {"cluster": {"log.level": "x"}}, entries) == state
            assert said_at(number, 20, {}, entries[1 : number - 1] + entries[number:]) is None
    assert said_at(0, 20, {}, entries) is None
    assert said_at(5, 8, states[8], entries[:5] + entries[6:]) == states[5], "a hole after it"
    assert said_at(6, 8, states[8], entries[:3] + entries[4:]) == states[6], "a hole before it"


@pytest.mark.parametrize("name", ["", "clusters", "labels/gpu", "labels/a=b/c", "nodes/", "nodes/../x", "history/1"])
def test_a_layer_that_no_node_would_look_at_is_refused(name: str) -> None:
    with pytest.raises(BadSettings, match="expected cluster"):
        expect_layer(name)


def test_labels_of_any_text_have_a_layer() -> None:
    name = label_layer("path", "/data/ä\n x")
    assert expect_layer(name) == "labels/path=%2Fdata%2F%C3%A4%0A x"
    assert layer_title(name) == "label path=/data/ä\n x"
    assert [layer_title(each) for each in ("cluster", "nodes/n1")] == ["cluster", "node n1"]


def test_every_setting_has_a_word_for_what_it_may_be() -> None:
    assert {row.key for row in table()} == set(KEYS)
    assert all(row.kind for row in table())
