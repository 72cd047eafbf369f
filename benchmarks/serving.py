"""Answers of a served model, zkd beside the least that could answer, Ray Serve and BentoML: requests a second, latency.

    python -m benchmarks.serving [--against floor,ray,bento] [--at-once 1,8,64] [--seconds 4] [--turns 2]
    python -m benchmarks.serving --faults [--seconds 6]

A logistic model of 50 features; a request has one row as JSON and wants its label and two probabilities, over
kept connections. So many are on their way at a time: each answer is followed by the next request.
One process asks (aiohttp on uvloop) and takes its share of the cores; p50 and p99 are as it sees them, so beyond what a
server can do they grow with what is on its way. `floor` is a process with an aiohttp handler of ten lines that does
what one would write with numpy: no batches, no deadlines, no versions, no second process, no token. Ray Serve has one
replica, BentoML one worker, both without batching. zkd is one daemon with one serving process, a real ZooKeeper and a
model from the registry; `zkd client` is the same with `client.predictor` as the one who asks. All BLAS have one thread.

With --faults three daemons are asked by a predictor, 16 requests at a time with a deadline of 1 s; every answer is
compared. One is killed with -9, then one is frozen: what that does to latency, while it is going on and before.

Contenders take turns, in reversed order every other time; each turn is a process of its own that starts what it needs
and ends it. Starting is not counted, nor the first second of each load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.cluster import ROOT, TOP, Node, circumstances, one_server, save
from benchmarks.predict import _model
from benchmarks.serving_model import WIDE, answered, weights
from benchmarks.turns import ONE_THREAD, _quiet_stdout
from zkd.errors import ZkdError

WARM_S = 1.0
STARTS_S = 90.0
OURS, OUR_CLIENT = "zkd", "zkd client"
FAULT_NODES = ("n1", "n2", "n3")
FAULT_AT_ONCE = 16
FAULT_DEADLINE_S = 1.0
FAULT_S = 1.5  # that count as the time of the fault

Ask = Callable[[], Awaitable[None]]  # one request, its answer looked at
Figures = dict[str, dict[str, float]]  # at once -> what came of it


# --- Load -----------------------------------------------------------------------------------------------------


async def load(ask: Ask, at_once: int, seconds: float) -> dict[str, float]:
    """Closed loops: requests a second, and milliseconds."""
    took: list[float] = []
    begin = time.perf_counter() + WARM_S
    end = begin + seconds

    async def one() -> None:
        while (began := time.perf_counter()) < end:
            await ask()
            if began >= begin:
                took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(one())
    return {"per_s": len(took) / seconds} | quantiles(took)


def quantiles(took: Sequence[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        name: 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0))
    }


ROW = np.random.default_rng(2).normal(size=(1, WIDE))
EXPECTED = answered(ROW, weights())


def asks(http: aiohttp.ClientSession, url: str, headers: dict[str, str], **fields: Any) -> Ask:
    body = json.dumps({"rows": ROW.tolist(), **fields}).encode()
    headers = headers | {"Content-Type": "application/json"}

    async def ask() -> None:
        async with http.post(url, data=body, headers=headers) as answer:
            told = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"HTTP {answer.status}: {told[:300]!r}")
        expect(json.loads(told))

    return ask


def expect(told: dict[str, Any]) -> None:
    if told["prediction"] != EXPECTED["prediction"] or abs(
        told["probabilities"][0][1] - EXPECTED["probabilities"][0][1]
    ) > 1e-12:  # fmt: skip
        raise AssertionError(f"expected {EXPECTED}, got {told}")


# --- Contenders -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def process_at(command: Sequence[str], url: str) -> AsyncIterator[Ask]:
    """A server as a process group of its own, from its first good answer on."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(  # noqa: ASYNC220 - nothing else goes on yet
            command, cwd=TOP, env={**os.environ, **ONE_THREAD}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                ask = asks(http, url, {})
                give_up = time.monotonic() + STARTS_S
                while True:
                    try:
                        await ask()
                        break
                    except (aiohttp.ClientError, RuntimeError) as error:
                        if time.monotonic() > give_up or server.poll() is not None:
                            log.seek(0)
                            words = log.read().decode(errors="replace")
                            raise RuntimeError(f"{command} does not answer: {error}\n{words[-3000:]}") from None
                    await asyncio.sleep(0.1)
                yield ask
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def with_floor() -> Any:
    return process_at([sys.executable, "-m", "benchmarks.serving_model", "floor", "8190"], "http://127.0.0.1:8190/")


def with_ray() -> Any:
    return process_at([sys.executable, "-m", "benchmarks.serving_model", "ray", "8191"], "http://127.0.0.1:8191/")


def with_bento() -> Any:
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.serving_bento:Model", "--port", "8192"]
    return process_at(command, "http://127.0.0.1:8192/predict")


@asynccontextmanager
async def cluster(names: Sequence[str]) -> AsyncIterator[tuple[Any, dict[str, Node]]]:
    """A client of these daemons, with the model `m` served as m@live by all."""
    from zkd.client import Client

    with tempfile.TemporaryDirectory(prefix="zkd-bench-") as own, one_server(Path(own) / "zookeeper") as server:
        nodes = {name: Node(server.connect_string, name, Path(own), slots=1, **ONE_THREAD) for name in names}
        try:
            for node in nodes.values():
                node.start()
            async with Client(server.connect_string, ROOT, connect_timeout_s=30.0) as client:
                for node in nodes.values():
                    await node.ready(client.session)
                give_up = time.monotonic() + STARTS_S
                while True:
                    try:
                        await client.models.push("m", _model(weights()))
                        break
                    except ZkdError:
                        if time.monotonic() > give_up:
                            raise
                        await asyncio.sleep(0.2)
                await client.models.alias("m@live")
                while not all((await client.models.holders("m@live")).values()):
                    await asyncio.sleep(0.1)
                yield client, nodes
        finally:
            for node in nodes.values():
                node.kill()


@asynccontextmanager
async def with_zkd() -> AsyncIterator[Ask]:
    async with cluster(["n1"]) as (client, _), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        address = (await client.nodes())["n1"].address
        token = (await client.session.get(client.paths.token)).data.decode()
        ask = asks(
            http, f"{address}/v1/models/m@live/predict", {"Authorization": f"Bearer {token}"}, deadline_ms=10_000
        )
        await ask()
        yield ask


@asynccontextmanager
async def with_our_client() -> AsyncIterator[Ask]:
    async with cluster(["n1"]) as (client, _), client.predictor("m@live", deadline_s=10.0) as predictor:
        await predictor(ROW)

        async def ask() -> None:
            answer = await predictor.ask(ROW)
            expect({"prediction": answer.prediction.tolist(), "probabilities": answer.probabilities.tolist()})

        yield ask


CONTENDERS: dict[str, Callable[[], Any]] = {
    OURS: with_zkd,
    OUR_CLIENT: with_our_client,
    "floor": with_floor,
    "ray": with_ray,
    "bento": with_bento,
}


async def turn(name: str, loads: Sequence[int], seconds: float) -> Figures:
    async with CONTENDERS[name]() as ask:
        return {str(at_once): await load(ask, at_once, seconds) for at_once in loads}


# --- Faults ---------------------------------------------------------------------------------------------------


async def faults(seconds: float) -> dict[str, Any]:
    """Latency before, in the second and a half after each fault, and after that; answers that were lost or wrong."""
    stage = "before"
    took: dict[str, list[float]] = {}
    lost: dict[str, int] = {}
    twice: dict[str, int] = {}
    is_over = False
    async with AsyncExitStack() as stack:
        client, nodes = await stack.enter_async_context(cluster(FAULT_NODES))
        predictor = await stack.enter_async_context(client.predictor("m@live", deadline_s=FAULT_DEADLINE_S))
        for _ in range(200):
            await predictor(ROW, deadline_s=30.0)

        async def one() -> None:
            while not is_over:
                now, began = stage, time.perf_counter()
                try:
                    answer = await predictor.ask(ROW)
                except ZkdError as error:
                    print(error, file=sys.stderr)
                    lost[now] = lost.get(now, 0) + 1
                    continue
                took.setdefault(now, []).append(time.perf_counter() - began)
                twice[now] = twice.get(now, 0) + (len(answer.asked) > 1)
                expect({"prediction": answer.prediction.tolist(), "probabilities": answer.probabilities.tolist()})

        async with asyncio.TaskGroup() as tasks:
            for _ in range(FAULT_AT_ONCE):
                tasks.create_task(one())
            await asyncio.sleep(seconds)
            stage = "killed"
            nodes[FAULT_NODES[0]].kill()
            await asyncio.sleep(FAULT_S)
            stage = "then, with two"
            await asyncio.sleep(seconds)
            stage = "frozen"
            nodes[FAULT_NODES[1]].pause()
            await asyncio.sleep(FAULT_S)
            stage = "then, with one"
            await asyncio.sleep(seconds)
            is_over = True
        nodes[FAULT_NODES[1]].resume()
    return {
        stage: quantiles(values) | {"answers": len(values), "lost": lost.get(stage, 0), "asked_twice": twice[stage]}
        for stage, values in took.items()
    }


def fault_table(found: dict[str, Any]) -> str:
    lines = [
        "| 3 nodes, 16 requests at a time | answers | asked twice | lost | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {stage} | {each['answers']} | {each['asked_twice']} | {each['lost']} | {each['p50_ms']:.1f} "
        f"| {each['p99_ms']:.1f} | {each['max_ms']:.0f} |"
        for stage, each in found.items()
    ]
    return "\n".join(lines)


# --- Turns ----------------------------------------------------------------------------------------------------


def run(names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(args.turns):
        for name in names if number % 2 == 0 else reversed(names):
            command = [sys.executable, "-m", "benchmarks.serving", "--turn", name, "--at-once", args.at_once]
            command += ["--seconds", str(args.seconds)]
            told = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **ONE_THREAD}
            ).stdout
            for at_once, figures in json.loads(told.splitlines()[-1]).items():
                found.setdefault(at_once, {}).setdefault(name, []).append(figures)
            print(f"turn {number + 1} of {args.turns}: {name}", file=sys.stderr)
    return found


def table(found: dict[str, Any]) -> str:
    lines: list[str] = []
    for at_once, by_name in found.items():
        many = f"{at_once} request{'s' if at_once != '1' else ''} at a time"
        lines += [f"| {many} | requests/s | p50 ms | p99 ms |", "|---|---|---|---|"]
        for name, turns in by_name.items():
            middle = partial(_middle, turns)
            lines.append(f"| {name} | {middle('per_s'):.0f} | {middle('p50_ms'):.2f} | {middle('p99_ms'):.2f} |")
        lines.append("")
    return "\n".join(lines)


def _middle(turns: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in turns)


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="floor,ray,bento")
    parser.add_argument("--at-once", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--faults", action="store_true", help="what a node that is killed or frozen does to latency")
    parser.add_argument("--turn", choices=CONTENDERS, help="one turn of one of them, told as JSON")
    args = parser.parse_args()
    if args.turn:
        loads = [int(each) for each in args.at_once.split(",")]
        with _quiet_stdout():
            figures = uvloop.run(turn(args.turn, loads, args.seconds))
        print(json.dumps(figures))
        return
    if args.faults:
        found = uvloop.run(faults(args.seconds))
        figures_and_more = {"circumstances": circumstances("python -m benchmarks.serving --faults"), "figures": found}
        save("serving_faults", figures_and_more, fault_table(found))
        return
    names = [OURS, OUR_CLIENT, *(name for name in args.against.split(",") if name)]
    found = run(names, args)
    save("serving", {"circumstances": circumstances("python -m benchmarks.serving"), "figures": found}, table(found))


if __name__ == "__main__":
    main()
