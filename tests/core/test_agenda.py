"""Which slots fire: told to the agenda as leaders are told by the tree, over a tree of two dictionaries."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zkd.core.agenda import ABSENT, LOOKED_AT_ONCE, Agenda, Command, Fire, Forget, Note, Words, check_state
from zkd.core.schedules import read, slot_name, slot_of
from zkd.errors import BadRecord
from zkd.records import ScheduleState

NOON = slot_of("20260301T120000Z")


@dataclass
class Tree:
    """What stands at schedules/ and control/schedules/, and every task that was ever dropped."""

    time: float = NOON
    zxid: int = 0
    words: dict[str, Words] = field(default_factory=dict)
    states: dict[str, tuple[ScheduleState, int]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    unfinished: set[str] = field(default_factory=set)

    def write(self, name: str, **fields: Any) -> None:
        """As a user does: create it or set its data."""
        self.zxid += 1
        known = self.words.get(name)
        czxid, version = (known.czxid, known.version + 1) if known else (self.zxid, 0)
        text = json.dumps({"task": {"kernel": "k"}, **fields}).encode()
        try:
            schedule, timing = read(name, text)
        except BadRecord as error:
            self.words[name] = Words(czxid, version, int(self.time), fault=str(error))
        else:
            self.words[name] = Words(czxid, version, int(self.time), schedule, timing)

    def leader(self) -> Agenda:
        """A new one, told of everything."""
        agenda = Agenda()
        for name, (state, version) in self.states.items():
            agenda.state_read(name, state, version)
        for name, words in self.words.items():
            agenda.words_read(name, words)
        return agenda

    def commit(self, command: Command) -> bool:
        """The transaction: whole or not at all."""
        name = command.name
        if self.states.get(name, (None, ABSENT))[1] != command.version:
            return False
        if isinstance(command, Forget):
            del self.states[name]
            return True
        state = command.state
        if isinstance(command, Fire):
            if name not in self.words or self.words[name].version != command.words_version:
                return False
            if command.unless in self.unfinished:
                state = command.instead
            else:
                self.dropped.append(command.task_id)
                self.texts[command.task_id] = bytes(command.task)
                self.unfinished.add(command.task_id)
        check_state(state)
        self.states[name] = (state, command.version + 1)
        return True

    def turn(self, agenda: Agenda, at_most: int = 16) -> list[Command]:
        """One turn of a leader's shell."""
        commands = agenda.commands(self.time, at_most)
        for command in commands:
            self.commit(command)
            state, version = self.states.get(command.name, (None, ABSENT))
            agenda.words_read(command.name, self.words.get(command.name))
            agenda.state_read(command.name, state, version)
        return commands

    def run(self, agenda: Agenda, until: float | None = None) -> list[str]:
        """Turns until nothing is to be done, or on to `until`; the slots that fired, without names of tasks."""
        before = len(self.dropped)
        for _ in range(10_000):
            if self.turn(agenda):
                continue
            timer = agenda.next_timer()
            if until is None or timer is None or timer > until:
                self.time = max(self.time, until or 0)
                return [task_id.rpartition(".")[2][9:15] for task_id in self.dropped[before:]]
            self.time = max(self.time, timer)
        raise AssertionError("the agenda comes to no end")


@pytest.fixture
def tree() -> Tree:
    return Tree()


def state(tree: Tree, name: str = "s") -> ScheduleState:
    return tree.states[name][0]


def test_the_first_slot_is_the_one_after_the_creation(tree: Tree) -> None:
    tree.time = NOON + 3.5
    tree.write("s", every_s=10)
    assert tree.run(tree.leader(), NOON + 35) == ["120010", "120020", "120030"]
    assert tree.dropped[0] == "s.20260301T120010Z"
    assert (state(tree).fired, state(tree).skipped, state(tree).slot) == (3, 0, "20260301T120030Z")


def test_a_slot_in_the_very_second_of_the_creation_is_not_after_it(tree: Tree) -> None:
    tree.write("s", every_s=10)
    assert tree.run(tree.leader(), NOON + 10) == ["120010"]


def test_the_last_slot_that_passed_while_nobody_led_fires_late_and_the_others_are_counted(tree: Tree) -> None:
    tree.write("s", cron="*/5 * * * *")
    assert tree.run(tree.leader(), NOON + 300) == ["120500"]
    tree.time = NOON + 1790
    agenda = tree.leader()
    assert tree.run(agenda) == ["122500"]
    assert (state(tree).fired, state(tree).skipped) == (2, 3)
    assert tree.run(agenda) == []
    assert tree.run(agenda, NOON + 1800) == ["123000"]


def test_what_was_created_while_nobody_led_fires_from_its_creation_on(tree: Tree) -> None:
    tree.write("s", every_s=10)
    tree.time = NOON + 25
    assert tree.run(tree.leader()) == ["120020"]
    assert state(tree).skipped == 1


def test_no_slot_fires_twice_however_clocks_jump(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    assert tree.run(agenda, NOON + 20) == ["120010", "120020"]
    tree.time = NOON - 3600
    assert tree.run(agenda) == []
    assert tree.run(tree.leader(), NOON + 29) == []
    assert tree.run(tree.leader(), NOON + 30) == ["120030"]


def test_two_leaders_that_do_not_know_of_each_other_fire_a_slot_once(tree: Tree) -> None:
    tree.write("s", every_s=10)
    first = tree.leader()
    tree.run(first)
    second = tree.leader()
    tree.time = NOON + 10
    assert tree.run(second) == ["120010"]
    assert tree.run(first) == []  # its transaction is refused, and it reads what stands there


def test_an_edit_takes_effect_at_once_and_not_for_the_time_before(tree: Tree) -> None:
    tree.write("s", cron="0 * * * *")
    agenda = tree.leader()
    assert tree.run(agenda, NOON + 3000) == []
    tree.write("s", cron="*/5 * * * *")
    agenda.words_read("s", tree.words["s"])
    assert tree.run(agenda) == []
    assert tree.run(agenda, NOON + 3300) == ["125500"]
    assert state(tree).skipped == 0


def test_an_edit_of_the_task_alone_loses_no_slot(tree: Tree) -> None:
    tree.write("s", every_s=10)
    tree.run(tree.leader())
    tree.time = NOON + 12
    tree.write("s", every_s=10, task={"kernel": "other"})
    tree.time = NOON + 13
    assert tree.run(tree.leader()) == ["120010"]
    assert tree.texts == {"s.20260301T120010Z": b'{"kernel": "other"}'}


def test_nothing_fires_while_paused_nor_for_that_time_when_resumed(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    assert tree.run(agenda, NOON + 10) == ["120010"]
    tree.write("s", every_s=10, paused=True)
    agenda.words_read("s", tree.words["s"])
    assert tree.run(agenda, NOON + 55) == []
    assert state(tree).timing == "paused"
    tree.write("s", every_s=10)
    agenda.words_read("s", tree.words["s"])
    assert tree.run(agenda, NOON + 60) == ["120100"]
    assert (state(tree).fired, state(tree).skipped) == (2, 0)


def test_a_slot_is_skipped_and_counted_while_the_former_task_is_not_finished(tree: Tree) -> None:
    tree.write("s", every_s=10, overlap="skip")
    agenda = tree.leader()
    assert tree.run(agenda, NOON + 35) == ["120010"]
    assert (state(tree).fired, state(tree).skipped, state(tree).slot) == (1, 2, "20260301T120030Z")
    tree.unfinished.clear()
    assert tree.run(tree.leader(), NOON + 45) == ["120040"]


def test_a_deleted_schedule_ends_and_its_state_goes(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    tree.run(agenda, NOON + 10)
    del tree.words["s"]
    agenda.words_read("s", None)
    assert tree.run(agenda, NOON + 60) == []
    assert tree.states == {}
    assert agenda.entries == {}


def test_one_that_is_made_anew_begins_anew(tree: Tree) -> None:
    tree.write("s", every_s=10)
    tree.run(tree.leader(), NOON + 10)
    del tree.words["s"]
    tree.time = NOON + 41
    tree.write("s", every_s=10)
    assert tree.run(tree.leader(), NOON + 50) == ["120050"]
    assert (state(tree).fired, state(tree).skipped) == (1, 0)


def test_a_malformed_one_says_why_and_goes_on_when_mended(tree: Tree) -> None:
    tree.write("bad", cron="61 * * * *")
    tree.write("good", every_s=10)
    agenda = tree.leader()
    assert tree.run(agenda, NOON + 10) == ["120010"]
    assert "$.cron: expected a minute" in (state(tree, "bad").error or "")
    tree.write("bad", cron="1 * * * *")
    agenda.words_read("bad", tree.words["bad"])
    tree.run(agenda)
    assert (state(tree, "bad").error, state(tree, "bad").since) == (None, slot_name(NOON + 10))


def test_many_that_are_due_together_take_turns(tree: Tree) -> None:
    for number in range(50):
        tree.write(f"s{number}", every_s=10)
    agenda = tree.leader()
    tree.run(agenda)
    tree.time = NOON + 10
    assert [len(tree.turn(agenda)) for _ in range(5)] == [16, 16, 16, 2, 0]


def test_a_new_leader_looks_at_very_many_a_part_at_a_time(tree: Tree) -> None:
    """The next slot of a line of cron takes a while to find: of 100,000 at once, longer than a session lasts."""
    count = 2 * LOOKED_AT_ONCE + 10
    for number in range(count):
        tree.write(f"s{number}", every_s=10)
    tree.run(tree.leader())
    agenda = tree.leader()
    looks = 0
    while (timer := agenda.next_timer()) is not None and timer <= tree.time:
        assert agenda.commands(tree.time, 16) == []
        looks += 1
    assert looks == 3
    tree.time = NOON + 10
    assert len(tree.run(agenda)) == count


def test_a_state_that_cannot_be_read_fires_nothing_of_the_past(tree: Tree) -> None:
    tree.write("s", every_s=10)
    tree.run(tree.leader(), NOON + 40)
    tree.time = NOON + 45
    agenda = Agenda()
    agenda.words_read("s", tree.words["s"])
    agenda.state_unreadable("s", tree.states["s"][1], tree.time)
    assert tree.run(agenda) == []
    assert tree.run(agenda, NOON + 50) == ["120050"]


def test_a_state_that_somebody_removed_is_written_again(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    tree.run(agenda, NOON + 40)
    known = tree.states.pop("s")[0]
    agenda.state_removed("s")
    assert tree.run(agenda) == []
    assert state(tree) == known


def test_what_was_refused_is_tried_again_later_with_the_slot_of_then(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    tree.run(agenda)
    tree.time = NOON + 10
    assert [type(command) for command in agenda.commands(tree.time, 16)] == [Fire]
    agenda.put_off("s", NOON + 25)
    assert agenda.next_timer() == NOON + 25
    assert tree.run(agenda, NOON + 25) == ["120020"]
    assert state(tree).skipped == 1


class Lives(RuleBasedStateMachine):
    """Users edit, leaders come and go in the middle of a turn, clocks jump: no slot fires twice in a life."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.agendas = [Agenda()]
        self.fired: Counter[tuple[int, str]] = Counter()

    @rule(name=st.sampled_from("ab"), every=st.sampled_from([1, 7, 60]), paused=st.booleans(), skip=st.booleans())
    def write(self, name: str, every: int, paused: bool, skip: bool) -> None:
        self.tree.write(name, every_s=every, paused=paused, overlap="skip" if skip else "allow")

    @rule(name=st.sampled_from("ab"))
    def spoil(self, name: str) -> None:
        self.tree.write(name)

    @rule(name=st.sampled_from("ab"))
    def delete(self, name: str) -> None:
        self.tree.words.pop(name, None)

    @rule(seconds=st.floats(-100, 200))
    def time_goes(self, seconds: float) -> None:
        self.tree.time += seconds

    @rule()
    def tasks_end(self) -> None:
        self.tree.unfinished.clear()

    @rule()
    def another_leader(self) -> None:
        self.agendas = [*self.agendas[-1:], self.tree.leader()]

    @rule(which=st.integers(0, 1), hears=st.booleans())
    def turn(self, which: int, hears: bool) -> None:
        """One leader's turn; the other may have acted since, and of what users did it may not have heard."""
        agenda = self.agendas[which % len(self.agendas)]
        if hears:
            for name in "ab":
                if agenda.entries.get(name) or name in self.tree.words:
                    agenda.words_read(name, self.tree.words.get(name))
        before = len(self.tree.dropped)
        self.tree.turn(agenda)
        for task_id in self.tree.dropped[before:]:
            self.fired[self.tree.words[task_id.partition(".")[0]].czxid, task_id] += 1

    @precondition(lambda self: self.tree.dropped)
    @invariant()
    def no_slot_twice(self) -> None:
        assert max(self.fired.values()) == 1

    @invariant()
    def slots_only_grow_within_a_life(self) -> None:
        for name, (known, _) in self.tree.states.items():
            assert known.task is None or known.task.startswith(f"{name}.")
            if known.slot is not None and known.task is not None:
                assert known.task.rpartition(".")[2] <= known.slot

    def teardown(self) -> None:
        """Left alone, every sound schedule is fired again by a new leader, and what is gone has no state."""
        agenda = self.tree.leader()
        self.tree.unfinished.clear()
        self.tree.run(agenda, self.tree.time + 2000)
        assert self.tree.states.keys() == self.tree.words.keys()
        for name, words in self.tree.words.items():
            found = self.tree.states[name][0]
            is_live = words.schedule is not None and not words.schedule.paused
            assert found.czxid == words.czxid
            assert (found.error is None) == (words.fault is None)
            assert not is_live or found.slot is not None


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_state_is_checked() -> None:
    good = ScheduleState(1, "every 1 s", slot_name(NOON), 0, 0)
    check_state(good)
    for bad in ({"since": "now"}, {"slot": "tomorrow"}, {"fired": -1}):
        with pytest.raises(BadRecord):
            check_state(msgspec.structs.replace(good, **bad))


def test_a_note_names_the_version_that_stands(tree: Tree) -> None:
    tree.write("s", every_s=10)
    agenda = tree.leader()
    (note,) = agenda.commands(tree.time, 16)
    assert note == Note("s", ABSENT, ScheduleState(1, "every 10 s", slot_name(NOON), 0, 0))
