"""deploy/: against the published schemas, our settings, our command line, and a scrape of a real node."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from dockerfile_parse import DockerfileParser

import starlight
from starlight.auth.permissions import read_groups
from starlight.cli import main as cli
from starlight.config.settings import Settings, entries
from starlight.config.units import parse_duration
from starlight.errors import RequestFailed

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.30"
"""An older release than most clusters run; newer ones only add fields."""

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
(DEPLOYMENT,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "starlight.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

NOT_RUN = "not run by us"


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> DockerfileParser:
    """A copy, as the parser opens its file for writing, too."""
    path = tmp_path_factory.mktemp("docker") / "Dockerfile"
    path.write_text((DEPLOY / "Dockerfile").read_text())
    return DockerfileParser(str(path))


class Scrape:
    """What a real node's internal port says."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        """The body of a page that must be there."""
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            body: bytes = answer.read()
            return body

    def series(self) -> set[str]:
        """The names of all series."""
        return set(re.findall(r"^(\w+)", self.get("/metrics").decode(), re.MULTILINE)) - {"#"}


@pytest.fixture(scope="module")
def scrape() -> Iterator[Scrape]:
    """A node on which something has happened: a login, a publication, a refusal, a close."""
    command = [sys.executable, "-m", "starlight", "serve", "--port", "0", "--internal-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            output = ""
            while not (internal := re.search(r"internal port\D*(http://[\d.:]+)", output)):
                line = process.stdout.readline()
                assert line, output
                output += line
            listens = re.search(r"ws://[^\s\"]+", output)
            assert listens
            asyncio.run(use(listens[0]))
            yield Scrape(internal[1])
        finally:
            process.terminate()
            process.stdout.read()
            process.wait(20)


async def use(url: str) -> None:
    async with starlight.connect(url, user="ann") as client, client.join("news") as news:
        await client.publish("news", 1)
        await anext(news)
        with contextlib.suppress(RequestFailed):
            await client.request("nothing")


def last_stage(dockerfile: DockerfileParser) -> dict[str, str]:
    """The last instruction of each kind in the last stage."""
    found: dict[str, str] = {}
    for step in dockerfile.structure:
        if step["instruction"] == "FROM":
            found = {}
        found[step["instruction"]] = step["value"]
    return found


def environments(dockerfile: DockerfileParser) -> dict[str, dict[str, str]]:
    """The variables that each file sets."""
    env = dict(word.split("=", 1) for word in shlex.split(last_stage(dockerfile)["ENV"]))
    compose = COMPOSE["services"]["starlight"]["environment"]
    pod = {item["name"]: item["value"] for item in CONTAINER["env"]}
    return {"Dockerfile": env, "compose.yaml": {**env, **compose}, "kubernetes.yaml": {**env, **pod}}


@pytest.mark.parametrize(
    "name", ["Dockerfile", "compose.yaml", "kubernetes.yaml", "grafana/starlight.json", "README.md"]
)
def test_what_was_not_run_says_so(name: str):
    assert NOT_RUN in (DEPLOY / name).read_text()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kubernetes.yaml"])
def test_every_variable_is_a_setting_with_a_good_value(name: str, dockerfile: DockerfileParser):
    known = {entry.variable: entry for entry in entries()}
    ours = {key: value for key, value in environments(dockerfile)[name].items() if key.startswith("STARLIGHT_")}
    assert ours
    for variable, value in ours.items():
        assert variable in known, variable
        if not variable.endswith("_FILE"):
            Settings(**{known[variable].name: value})


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_nobody_comes_in_without_a_token(name: str, dockerfile: DockerfileParser):
    env = environments(dockerfile)[name]
    assert env["STARLIGHT_AUTH"] == "jwt" and env["STARLIGHT_HOST"] == "0.0.0.0"
    assert env["STARLIGHT_INTERNAL_KEY_FILE"]  # as its port is for more than loopback
    assert "STARLIGHT_INSECURE_NO_AUTH" not in env


def test_the_image_alone_refuses_to_let_anybody_in(dockerfile: DockerfileParser):
    stage = last_stage(dockerfile)
    program, *words = [*json.loads(stage["ENTRYPOINT"]), *json.loads(stage["CMD"])]
    env = {**os.environ, **environments(dockerfile)["Dockerfile"]}
    run = subprocess.run(
        [sys.executable, "-m", program, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2 and "--auth jwt" in run.stderr


# --- Dockerfile ------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_against_it():
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_image_has_two_stages_and_runs_as_nobody_in_particular(dockerfile: DockerfileParser):
    assert len(dockerfile.parent_images) == 2
    assert not any("." in image.split("/")[0].split(":")[0] for image in dockerfile.parent_images)  # no registry's host
    stage = last_stage(dockerfile)
    user, _, group = stage["USER"].partition(":")
    assert int(user) > 0 and int(group) > 0
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert int(stage["EXPOSE"]) == Settings().port
    assert not re.search("gcc", stage["RUN"])
    assert POD["securityContext"]["runAsUser"] == int(user)


def test_its_build_context_has_what_is_needed(dockerfile: DockerfileParser):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for path in kept:
        assert (ROOT / path).exists(), path
    assert {"starlight", "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= set(kept)
    copies = [step["value"] for step in dockerfile.structure if step["instruction"] == "COPY"]
    assert copies == [". ."]


def test_the_health_check_works(dockerfile: DockerfileParser, scrape: Scrape):
    words = json.loads(last_stage(dockerfile)["HEALTHCHECK"].partition("CMD")[2])
    port = environments(dockerfile)["Dockerfile"]["STARLIGHT_INTERNAL_PORT"]
    assert words[:2] == ["python", "-c"] and f"127.0.0.1:{port}/" in words[2]
    for where, status in ((scrape.url.partition("//")[2], 0), ("127.0.0.1:1", 1)):
        command = words[2].replace(f"127.0.0.1:{port}", where)
        assert subprocess.run([sys.executable, "-c", command], capture_output=True, timeout=20).returncode == status


# --- Compose ---------------------------------------------------------------------------------------------------------


def test_compose_fits_its_schema():
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_compose_mounts_what_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert "." not in service["image"].split("/")[0]
        for port in service.get("ports", []):
            assert ipaddress.ip_address(port.split(":")[0]).is_loopback
    build = COMPOSE["services"]["starlight"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_compose_waits_for_the_drain():
    service = COMPOSE["services"]["starlight"]
    drain_s = parse_duration(service["environment"]["STARLIGHT_DRAIN_TIMEOUT_S"])
    assert parse_duration(service["stop_grace_period"]) >= drain_s + 5


def test_the_secrets_that_are_named_are_mounted():
    mounted = {f"/run/secrets/{name}" for name in COMPOSE["services"]["starlight"]["secrets"]}
    for variable, value in COMPOSE["services"]["starlight"]["environment"].items():
        assert not variable.endswith("_FILE") or value in mounted, variable
    assert (DEPLOY / "secrets" / ".gitignore").read_text().splitlines()[-2:] == ["*", "!.gitignore"]


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_manifests_fit_their_schemas(manifest: dict[str, Any]):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_wrong_manifest_does_not():
    wrong = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_probes_ask_the_internal_port_for_what_it_has(scrape: Scrape, dockerfile: DockerfileParser):
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    env = environments(dockerfile)["kubernetes.yaml"]
    assert ports == {"websocket": Settings().port, "internal": int(env["STARLIGHT_INTERNAL_PORT"])}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        ask = CONTAINER[probe]["httpGet"]
        assert ask["port"] == "internal"
        assert scrape.get(ask["path"])
    (service,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "Service"]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["websocket"]
    assert service["spec"]["selector"].items() <= DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()


def test_the_drain_before_the_stop_has_its_time(capsys: pytest.CaptureFixture[str]):
    program, command, *words = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, command, words[0]) == ("starlight", "drain", "--wait")
    assert cli.main(["drain", "--help"]) == 0
    assert "--wait" in capsys.readouterr().out
    env = {item["name"]: item["value"] for item in CONTAINER["env"]}
    drain_s, wait_s = parse_duration(env["STARLIGHT_DRAIN_TIMEOUT_S"]), parse_duration(words[1])
    assert drain_s < wait_s
    assert POD["terminationGracePeriodSeconds"] > wait_s + drain_s


def test_the_pods_process_starts_answers_its_probes_and_drains(tmp_path: Path, dockerfile: DockerfileParser):
    """The manifest's command and variables without a container: files in a folder of ours, ports of the kernel's."""
    settings = next(manifest for manifest in MANIFESTS if manifest["kind"] == "ConfigMap")["data"]
    for name in ("jwt", "session", "internal"):
        (tmp_path / name).write_text("s" * 48)
    (tmp_path / "starlight.toml").write_text(settings["starlight.toml"])
    port, internal = free_port(), free_port()
    env = {**os.environ, **environments(dockerfile)["kubernetes.yaml"]}
    env |= {
        name: str(tmp_path / Path(env[name]).name) for name in env if name.startswith("STARLIGHT_") and "_FILE" in name
    }
    env |= {"STARLIGHT_PORT": str(port), "STARLIGHT_INTERNAL_PORT": str(internal), "STARLIGHT_DRAIN_NOTICE_S": "0"}
    env["STARLIGHT_NODE"] = f"http://127.0.0.1:{internal}"
    with subprocess.Popen([sys.executable, "-m", "starlight", *CONTAINER["args"]], cwd=ROOT, env=env) as process:
        try:
            deadline_s = time.monotonic() + 30
            while not is_ready(internal) and time.monotonic() < deadline_s:
                time.sleep(0.1)
            assert is_ready(internal)
            command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
            drain = [sys.executable, "-m", *command]
            run = subprocess.run(drain, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
            assert run.returncode == 0, run.stderr
            assert process.wait(30) == 0
        finally:
            process.kill()


def is_ready(port: int) -> bool:
    path = CONTAINER["readinessProbe"]["httpGet"]["path"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # an HTTPError is one
        return False


def test_what_is_mounted_is_what_is_named(tmp_path: Path):
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in POD["volumes"]}
    for item in CONTAINER["env"]:
        if item["name"].endswith("_FILE"):
            assert any(item["value"].startswith(path + "/") for path in mounts.values()), item["name"]
    (settings,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "ConfigMap"]
    ((name, text),) = settings["data"].items()
    env = {item["name"]: item["value"] for item in CONTAINER["env"]}
    assert env["STARLIGHT_CONFIG_FILE"] == f"{mounts['settings']}/{name}"
    (tmp_path / name).write_text(text)
    assert "default" in read_groups(str(tmp_path / name))


def test_memory_fits_the_budget(dockerfile: DockerfileParser):
    budget = Settings(memory_budget_bytes=environments(dockerfile)["kubernetes.yaml"]["STARLIGHT_MEMORY_BUDGET_BYTES"])
    assert CONTAINER["resources"]["limits"]["memory"] == "1Gi" and budget.memory_budget_bytes <= 2**30 // 2


# --- Prometheus and Grafana ------------------------------------------------------------------------------------------


def test_prometheus_scrapes_the_internal_port_with_the_key():
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    host, _, port = target.partition(":")
    assert host in COMPOSE["services"]
    assert port in (DEPLOY / "Dockerfile").read_text()
    key = COMPOSE["services"]["starlight"]["environment"]["STARLIGHT_INTERNAL_KEY_FILE"]
    assert job["authorization"]["credentials_file"] == key


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_reads_the_configuration():
    path = DEPLOY / "prometheus" / "prometheus.yaml"
    run = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_a_real_prometheus_has_an_answer_to_every_expression(scrape: Scrape, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    text = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    for old, new in {
        "starlight:8766": scrape.url.partition("//")[2],
        "/run/secrets/internal": str(key),
        "scrape_interval: 5s": "scrape_interval: 1s",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "prometheus.yml").write_text(text)
    port = free_port()
    command = [
        "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            missing = set(expressions())
            deadline_s = time.monotonic() + 60
            while missing and time.monotonic() < deadline_s:
                time.sleep(0.5)
                missing = {expression for expression in missing if not has_answer(port, expression)}
            assert missing == set()
        finally:
            process.terminate()
            process.wait(20)


def has_answer(port: int, expression: str) -> bool:
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=20) as answer:
            return bool(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        assert error.code == 503, (expression, error.read())  # anything else is about the expression
        return False
    except OSError:
        return False  # not yet listening


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_dashboard_is_laid_out():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_every_panel_says_what_it_shows(panel: dict[str, Any]):
    provisioned = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in (panel, *panel["targets"]):
        assert target["datasource"]["uid"] == provisioned[0]["uid"]


def expressions() -> Iterator[str]:
    """The PromQL of all panels, with Grafana's variables filled in."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


@pytest.mark.parametrize("expression", [*expressions()])
def test_every_expression_is_promql(expression: str):
    promql_parser.parse(expression)


def test_every_metric_of_the_dashboard_is_scraped(scrape: Scrape):
    there = scrape.series()
    shown = {name for text in expressions() for name in re.findall(r"\bstarlight_\w+", text)}
    shown |= set(re.findall(r"\bstarlight_\w+", DASHBOARD["templating"]["list"][0]["definition"]))
    assert len(shown) > 20
    assert shown - there == set()


def test_the_labels_of_the_dashboard_are_scraped(scrape: Scrape):
    text = scrape.get("/metrics").decode()
    for expression in expressions():
        for labels, name in re.findall(r"sum by \(([\w, ]+)\) \(rate\((\w+)", expression):
            line = next(line for line in text.splitlines() if line.startswith(name + "{"))
            for label in labels.split(", "):
                assert f'{label}="' in line, expression


# --- deploy/README.md ------------------------------------------------------------------------------------------------


def test_the_readme_names_every_file():
    text = (DEPLOY / "README.md").read_text()
    links = {str((DEPLOY / link).resolve()) for link in re.findall(r"\]\(([^)]+)\)", text)}
    assert all(Path(link).exists() for link in links)
    tracked = subprocess.run(["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split():
        path = (ROOT / name).resolve()
        assert {str(path), str(path.parent)} & links or path.name in ("README.md", ".gitignore"), name
