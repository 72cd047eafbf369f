"""Files that run code when they are read, and others that are no models, are told by their names and first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
import zlib

import numpy as np
import pytest

from zkd.arrays.tensors import pack
from zkd.core import foreign


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("data.pkl", b"x")
    return file.getvalue()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("somebody ran this",)


BODY = {"coef_": [1.0, 2.0], "classes_": ["a", "b"], "more": list(range(100))}
VALUES = (BODY, Evil(), [1.5] * 9, (1, 2) * 9)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        *((pickle.dumps(value, protocol), "a pickle") for protocol in range(6) for value in VALUES),
        (gzip.compress(pickle.dumps(BODY)), "gzip"),
        (zlib.compress(pickle.dumps(BODY)), "zlib"),
        (bz2.compress(pickle.dumps(BODY)), "bzip2"),
        (lzma.compress(pickle.dumps(BODY)), "xz"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (archive(), "zip"),
        (npy(), "npy"),
        (b"", "0 bytes"),
        (b"\x10\0\0\0\0\0\0\0", "8 bytes"),
        (b'{"kind": "linear", "w": [1, 2]}', "no safetensors file"),
        (bytes(100), "a header of 0 bytes"),
        (b"\xff" * 100, "a header of 18446744073709551615 bytes"),
        (b"\0\0\0\2\0\0\0\0{" + bytes(100), "a header of 33554432 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_by_its_first_bytes(data: bytes, what: str) -> None:
    why = foreign.of_bytes(data[: foreign.HEAD_BYTES], len(data))
    assert why is not None
    assert what in why


def test_what_may_be_a_model_is_not() -> None:
    for data in (pack({"w": np.ones(3)}, {"format": "x"}), pack({})):
        assert foreign.of_bytes(data[: foreign.HEAD_BYTES], len(data)) is None


@pytest.mark.parametrize(
    ("name", "what"),
    [("m.pkl", "a pickle"), ("M.PICKLE", "a pickle"), ("m.joblib", "joblib"), ("m.h5", "HDF5"), ("m.keras", "Keras"),
     ("m.pt", "PyTorch"), ("m.onnx", "ONNX"), ("m.skops", "skops"), ("m.tar.npz", "numpy")],
)  # fmt: skip
def test_and_by_its_name(name: str, what: str) -> None:
    why = foreign.of_name(name)
    assert why is not None
    assert what in why
    assert "client.models.push(name, estimator)" in why


def test_other_names_say_nothing() -> None:
    assert [foreign.of_name(name) for name in ("m", "m.safetensors", "pkl", "m.zkd", "m.pkl.zkd")] == [None] * 5
