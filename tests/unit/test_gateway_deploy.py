"""What a gateway settles with Ray Serve before Ray starts."""

import os

import pytest

from runtime.gateway import deploy


def test_two_gateways_of_one_machine_share_no_port_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's fixed ports, its fallback proxy's above all, would carry one gateway's requests to the other."""
    chosen = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {})
            deploy.prepare()
            chosen.append({name: value for name, value in os.environ.items() if name not in deploy.FLAGS})
    first, second = chosen
    assert set(deploy.PORTS) <= first.keys() == second.keys()
    assert not {name for name in first if first[name] == second[name]}
    assert len({first[name] for name in deploy.PORTS}) == len(deploy.PORTS)
