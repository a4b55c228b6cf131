"""Ray's own ports, which run the code that they are sent, are closed to clients without its token."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray.serve")

SERVER = """
import os, subprocess, sys
import ray
from sptune.serve.server import _ray
with _ray(None):
    address = ray.get_runtime_context().gcs_address
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", sys.argv[1], address]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    print(found.stdout, found.stderr, os.environ["RAY_AUTH_MODE"])
print("then", os.environ["RAY_AUTH_MODE"])
"""
CLIENT = """
import sys
import ray
ray.init(sys.argv[1], log_to_driver=False)
print("let in")
"""


def test_ray_asks_for_its_token_although_the_environment_turns_it_off() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SERVER, CLIENT],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "authentication token" in ran.stdout.lower()
    assert "let in" not in ran.stdout
    assert "then disabled" in ran.stdout
