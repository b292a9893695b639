"""The engine and the runner against a small real server in another process."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from starlight.loadtest import BadTarget, Target, run_scenario, runner
from starlight.loadtest.errors import BadScenario
from starlight.loadtest.scenario import build
from tests.support.loadtest import Peer, broken, peer, short_run

__all__ = ["peer"]


def test_broadcast_is_counted_and_checked(peer: Peer) -> None:
    result = short_run(peer.url("b"))
    assert result.check.deliveries == result.counters["sent"] * 10 > 0
    assert result.check.checked == result.check.deliveries and broken(result) == {}
    assert 0 < result.latency.p50_ms <= result.latency.p99_ms <= result.latency.max_ms
    assert result.latency.count == result.latency_actual.count > 0
    assert result.connections == 10 and result.connect.count == 10 and result.series


@pytest.mark.parametrize("mode,receivers", [("broadcast", 10), ("others", 9)])
def test_plain_broadcast_finds_out_whether_the_sender_hears_itself(peer: Peer, mode: str, receivers: int) -> None:
    result = short_run(peer.url("p" + mode, mode=mode), dialect="raw")
    assert result.check.deliveries == result.counters["sent"] * receivers > 0 and broken(result) == {}


@pytest.mark.parametrize("mode,dialect", [("broadcast", "raw-lines"), ("native", "lines")])
def test_several_messages_in_one_frame(peer: Peer, mode: str, dialect: str) -> None:
    result = short_run(peer.url("l" + mode, mode=mode, merge=1), dialect=dialect, rate=1000.0)
    frames = result.counters["receives"]
    assert result.check.deliveries == result.counters["sent"] * 10 > frames and broken(result) == {}


def test_plain_echo_closed_model(peer: Peer) -> None:
    result = short_run(peer.url("e", mode="echo"), "echo", "raw", window=4, model="closed")
    assert result.check.deliveries == result.counters["sent"] > 40 and broken(result) == {}


def test_direct_with_acks(peer: Peer) -> None:
    result = short_run(peer.url("d"), "direct", acks=True, window=2, model="closed")
    assert result.acks == result.counters["sent"] == result.check.deliveries > 0 and broken(result) == {}
    assert result.ack.count > 0 and result.errors == 0


def test_channels_mixed_with_direct_and_rejoins(peer: Peer) -> None:
    changes = {"channels": 5, "members": 4, "publishers": 5, "acks": True, "rejoins_per_s": 100.0, "rate": 500.0}
    result = short_run(peer.url("m"), "mixed", **changes)
    assert result.rejoins > 5 and result.check.deliveries > 100 and broken(result) == {}


def test_churn_by_close_and_reset(peer: Peer) -> None:
    result = short_run(peer.url("c"), churn_per_s=100.0, churn_reset_share=0.5)
    assert result.churned > 5 and result.connects > 15 and broken(result) == {} and result.disconnects == 0


def test_connect_storm(peer: Peer) -> None:
    result = short_run(peer.url("s"), "connect-storm", churn_window=4)
    assert result.churned > 10 and result.connect.count > 20 and result.connects_per_s > 0


@pytest.mark.parametrize("kind", ["stall", "rate"])
def test_slow_readers_hold_nobody_up(peer: Peer, kind: str) -> None:
    changes = {"slow_share": 0.2, "slow_kind": kind, "window": 2, "model": "closed"}
    result = short_run(peer.url("slow" + kind), "slow-readers", **changes)
    fast = result.check.deliveries - result.slow_deliveries
    assert fast == result.counters["sent"] * 8 and broken(result) == {}
    assert (result.slow_deliveries > 0) == (kind == "rate")


@pytest.mark.parametrize("size", [16, 17, 126, "64KiB", "uniform:16-70000", "choice:16x0.9,1KiBx0.1"])
def test_payload_sizes(peer: Peer, size: int | str) -> None:
    result = short_run(peer.url("size"), connections=3, size=size, duration_s=0.15)
    assert result.check.checked == result.counters["sent"] * 3 > 0 and broken(result) == {}


def test_poisson_arrivals(peer: Peer) -> None:
    assert short_run(peer.url("poisson"), arrival="poisson", rate=500.0).sent_rate > 250


def test_two_processes_share_one_run(peer: Peer) -> None:
    result = short_run(peer.url("two"), processes=2, publishers=4, window=2, model="closed")
    assert result.check.deliveries == result.counters["sent"] * 10 > 0 and broken(result) == {}
    assert result.generator.processes == 2


def test_receivers_that_are_only_counted_still_show_loss(peer: Peer) -> None:
    result = short_run(peer.url("counted"), check=0.5)
    assert 0.4 < result.check.share < 0.6 and broken(result) == {}
    result = short_run(peer.url("counted", fault="loss", at=32), check=0.0)
    assert broken(result) == {"lost": 1}


def test_server_figures(peer: Peer) -> None:
    result = run_scenario(
        build("broadcast", {"connections": 20, "warmup_s": 0, "duration_s": 0.3}),
        Target(peer.url("pid")),
        server_pids=[peer.process.pid],
    )
    server = result.server
    assert server is not None and server.cpu_s > 0 and server.rss_bytes > 1 << 20 and server.cpu_us_per_delivery
    assert server.connect_us and result.machine.foreign_share is not None


def test_stop_ends_early_with_what_was_measured(peer: Peer) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    began = time.monotonic()
    scenario = build("broadcast", {"connections": 5, "warmup_s": 0, "duration_s": 30})
    result = run_scenario(scenario, Target(peer.url("stop")), stop=stop)
    assert result.interrupted and time.monotonic() - began < 10 and result.deliveries > 0 and broken(result) == {}


def test_a_server_that_closes_later_is_booked_with_its_code(peer: Peer) -> None:
    result = short_run(peer.url("closing", close=5))
    assert result.disconnects == 1 and result.close_codes == {"1011": 1} and "planted" in result.first_disconnect


# ---- bad targets: one clear line

BAD = {
    "nobody": "Connection refused",
    "refused login": "closed the connection: 4500 invalid token",
    "refused upgrade": "refused the upgrade: HTTP/1.1 403",
    "not http": "does not speak HTTP",
    "silent": "instead of answering the upgrade",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_targets(peer: Peer, case: str) -> None:
    if case.startswith("refused"):
        url = peer.url("bad", refuse=case.split()[1])
    else:
        url = f"ws://127.0.0.1:{_odd_server(case)}/"
    with pytest.raises(BadTarget, match=BAD[case]) as caught:
        short_run(url, connections=1)
    assert "\n" not in str(caught.value)


def _odd_server(case: str) -> int:
    """The port of a server that answers with nonsense, or not at all (closes), or that isn't there."""
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    if case == "nobody":
        listening.close()
        return port

    def answer() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(4096)
            if case == "not http":
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    threading.Thread(target=answer, daemon=True).start()
    return port


def test_what_cannot_be_done_is_said_before_anything_is_opened() -> None:
    nowhere = Target("ws://127.0.0.1:1/", "raw")
    with pytest.raises(BadScenario, match="no direct messages"):
        run_scenario(build("direct", {}), nowhere)
    with pytest.raises(BadScenario, match="open files"):
        run_scenario(build("broadcast", {"connections": 10_000_000}), nowhere)
    with pytest.raises(BadScenario, match="no process"):
        run_scenario(build("broadcast", {}), nowhere, server_pids=[1 << 30])
    with pytest.raises(BadScenario, match="no TLS"):
        Target("wss://127.0.0.1/")


@pytest.mark.parametrize("model", ["open", "closed"])
def test_a_generator_at_its_limit_checks_fewer_receivers(
    peer: Peer, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECK_LIMIT_SHARE", 0.0)
    monkeypatch.setattr(runner, "SAMPLED_RECEIVERS", 2)
    result = short_run(peer.url("few" + model), model=model, window=3, warmup_s=0.1)
    assert result.check.share < 0.9 and broken(result) == {} and result.latency.count > 0
    assert f"{result.check.share:.1%} checked one by one" in str(result.check)
