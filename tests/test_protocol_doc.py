"""docs/protocol.md says what is true: its examples are valid, its tables are whole, its programs run."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from tests.client.coordinators import coordinators
from tests.client.standin import StandIn
from zkd import codec, schemas
from zkd.arrays import from_json
from zkd.configs import AppConfig, ConfigHead, ConfigLayer, ConfigRevision
from zkd.jobs import Job, JobState, Round
from zkd.records import Result, Schedule, ScheduleState, Task
from zkd.registry import Alias, Canary, ModelVersion, Move

if TYPE_CHECKING:
    from zkd.zk.server import EmbeddedServer

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "protocol.md").read_text()
EXAMPLES = re.findall(r"^```json (\S+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_the_examples_are_what_they_say(name: str, example: str) -> None:
    struct, _ = schemas.RECORDS[name]
    jsonschema.validate(json.loads(example), schemas.schema(name))
    if struct is Task:
        codec.decode_task(example.encode())
    else:
        known = set(struct.__struct_fields__)
        assert set(json.loads(example)) <= known
        codec.decode(example.encode(), struct)


def test_every_record_has_an_example() -> None:
    assert {name for name, _ in EXAMPLES} >= set(schemas.RECORDS) - {"blob-ref"}


@pytest.mark.parametrize(
    "struct",
    [
        *(Task, Result, Schedule, ScheduleState, Job, JobState, Round, ModelVersion, Alias, Canary, Move),
        *(ConfigHead, ConfigLayer, ConfigRevision, AppConfig),
    ],
)
def test_the_tables_have_every_field(struct: type) -> None:
    table = TEXT.split(f"<!-- fields: {struct.__name__} -->")[1].split("\n\n")[1]
    documented = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented == set(struct.__struct_fields__)  # type: ignore[attr-defined]


def test_the_array_in_the_examples_is_an_array() -> None:
    arrays = [json.loads(text)["args"][0] for name, text in EXAMPLES if name == "task" and "dtype" in text]
    assert [from_json(json.dumps(array).encode()).tolist() for array in arrays] == [[[1.0, 2.0], [3.0, 4.0]]]


@pytest.mark.parametrize("name", list(schemas.RECORDS))
def test_the_published_schemas_are_those_of_the_program(name: str) -> None:
    published = DOCS / "schemas" / f"{name}.json"
    assert published.read_text() == schemas.text(name), f"run: zkd schema {name} > docs/schemas/{name}.json"


@pytest.mark.parametrize("name", list(schemas.RECORDS))
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.schema(name))


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"kernel": ""},
        {"kernel": "k", "args": {}},
        {"kernel": "k", "kwargs": []},
        {"kernel": "k", "items": 3},
        {"kernel": "k", "priority": 1001},
        {"kernel": "k", "priorty": 1},
        {"kernel": "k", "retries": -1},
        {"kernel": "k", "slots": 0},
    ],
)
def test_schema_and_program_refuse_alike(bad: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schemas.schema("task"))
    with pytest.raises(codec.BadRecord):
        codec.decode_task(json.dumps(bad).encode())


PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


async def output_of(program: str, hosts: str) -> bytes:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate(program.replace("127.0.0.1:2181", hosts).encode())
    return out


async def test_the_kazoo_program_runs_as_it_stands(embedded: EmbeddedServer) -> None:
    async with StandIn(embedded.connect_string, "/zkd", {"numpy.sum": sum}):
        assert await output_of(PROGRAMS[0], embedded.connect_string) == b"6\n"


async def test_the_kazoo_program_steers_a_training_job(embedded: EmbeddedServer) -> None:
    async with coordinators(embedded.connect_string, "n1") as cluster, asyncio.TaskGroup() as tasks:
        program = tasks.create_task(output_of(PROGRAMS[1], embedded.connect_string))
        assert (await cluster.dropped("income")).model == "logistic"
        await cluster.take("income", "n1")
        await cluster.desired("income", "pause")
        await cluster.change("income", phase="paused")
        await cluster.desired("income", "run")
        await cluster.change("income", phase="training")
        await cluster.end("income", b"a model", "n1")
        assert await program == b"done tolerance None\n"
        assert await cluster.session.exists("/zkd/jobs/income") is None


def test_the_jobs_of_zkcli_and_curator_are_jobs() -> None:
    typed = re.findall(r"^(?:create|set) /zkd/jobs/\w+ (\S+)$", TEXT, re.MULTILINE)
    typed += [json.loads(f'"{text}"') for text in re.findall(r'"/zkd/jobs/\w+",\s+"(\{.*\})"\.getBytes', TEXT)]
    assert [codec.decode(text.encode(), Job).desired for text in typed] == ["run", "pause", "run"]
