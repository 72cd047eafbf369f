"""A real S3 server in a thread, and Amazon's own client to look behind the back of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bucket `zkd` of a fresh server, and a client of Amazon's own to look into it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="zkd")
    yield client
    for listed in client.list_objects_v2(Bucket="zkd").get("Contents", []):
        client.delete_object(Bucket="zkd", Key=listed["Key"])
    client.close()
