"""starlight/ops/openapi.json against a real node: schemathesis makes requests of it and judges the answers."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.support.inside import KEY, inside

TIMEOUT_S = 120.0
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection", "unsupported_method", "ignored_auth",
)  # fmt: skip


async def test_the_description_is_true(tmp_path: Path):
    async with inside(tmp_path) as on:
        await on.login("ann", "news")
        run = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{on.port.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "7"),
            *("--generation-deterministic", "--suppress-health-check", "all"),
            *("--exclude-path", "/api/drain", "--no-color"),  # a node drains once
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1"},
        )
        try:
            said, _ = await asyncio.wait_for(run.communicate(), TIMEOUT_S)
        finally:
            if run.returncode is None:
                run.kill()
                await run.wait()
        assert run.returncode == 0, said.decode()[-8_000:]
        assert (await on.get("/varz"))["state"] == "serving"
